"""The wire protocol, and the contract of a flow.

Pure: bytes in, messages out; no socket, no clock, no file but the package's own catalogues. Imports nothing else of
Chronetix, so that a worker in another process, or a test, needs only this package. ``PROTOCOL.md`` is the
specification.
"""
