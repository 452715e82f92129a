"""The asynchronous flow of docs/plugins.md."""
