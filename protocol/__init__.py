"""What goes over a socket, and what a flow is.

Pure: bytes in, messages out; no socket, no clock, no file but the package's own catalogue. Imports nothing else of
Chronetix, so that a worker in another process, or a test, needs nothing but this. ``PROTOCOL.md`` is the specification.
"""
