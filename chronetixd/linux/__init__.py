"""Kernel features that no library wraps: control groups, pidfds, /proc, peers of sockets, exhaustion of descriptors."""
