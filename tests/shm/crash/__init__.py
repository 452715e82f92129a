"""Ends of a route that die, and the daemon that starts their successors."""
