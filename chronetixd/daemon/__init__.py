"""The composition root: the command, the daemon that connects the parts of all rooms, and the daemon's own status."""
