"""Benchmarks: the data plane and start-up, side by side with what else a Python process could use.

``python -m bench.data`` measures frames between two Python processes, ``python -m bench.start`` the start of
many workers. The rivals' packages are installed by the extra ``bench``; a rival that cannot run is reported with its
reason.
"""
