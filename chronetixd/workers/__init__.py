"""Processes: the launcher, the pool of warm workers, their output, and what they leave behind."""
