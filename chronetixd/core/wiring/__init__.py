"""Who has offered which shared memory, and who has to get it: a flow's routes as a machine without input or output.

Events in, instructions out: messages to workers, memories to close. Memories are
handles that mean nothing here; whoever carries the instructions out has checked what they stand for. What is in a
memory is asked for by a ``Reader``. Rules: of a node and of both ends of a stage it is always known in which state they
are (``states``); a route is a chain of stages, of which the last one is the present; every handle is closed once.
"""
