"""The checks, a module for each part of a worker's life."""
