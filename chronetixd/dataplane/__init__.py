"""The daemon's part of the data plane: which memory is whose, who is linked to whom, counters and taps. Frames never
pass through here."""
