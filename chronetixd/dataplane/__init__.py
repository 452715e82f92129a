"""The daemon's part of the data plane: owners of shared memory, links between workers, counters and taps. Frames never
pass through the daemon.
"""
