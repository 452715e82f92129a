"""A node's shared memory: its arena, its ends of routes, and their stages."""
