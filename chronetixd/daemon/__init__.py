"""The composition root: the command, the daemon that puts all rooms together, and its own status."""
