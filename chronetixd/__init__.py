"""The daemon: runs compiled flows, each plugin in a process of its own.

``core/`` decides (pure state machines without input or output); the rooms beside it carry out its decisions: they move
bytes, descriptors and signals. ``compile/`` compiles a graph of the DSL into a flow.
"""
