"""The plugin's loop, blocking and asynchronous, whatever process it runs in."""
