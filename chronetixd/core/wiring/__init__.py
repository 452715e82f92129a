"""Shared memory of a flow's workers: a state machine without input or output that decides which memory each worker is
sent.

Events are what workers offer and report. Instructions are messages to workers, and memories to close. Memories are
handles without meaning here: the code that carries the instructions out has checked the memory behind each handle. A
``MemoryReader`` reads what a memory contains. Rules: every node and both ends of every stage are in a known state at
all times (``states``). A route is a chain of stages, of which the last one is the present stage. Every handle is closed
exactly once.
"""
