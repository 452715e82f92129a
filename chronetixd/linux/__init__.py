"""What the kernel offers and no library wraps: control groups, pidfds, /proc, peers of sockets, want of descriptors."""
