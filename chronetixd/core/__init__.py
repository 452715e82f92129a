"""What the daemon decides, without touching anything: events in, instructions out, time passed in.

Nothing here opens a file, reads a clock or knows a socket (import-linter holds it to that). Illegal events raise
:class:`~chronetixd.core.machine.IllegalEvent` and change nothing.
"""
