"""The daemon: runs compiled flows, each plugin in a process of its own.

``core/`` decides (pure state machines, no input or output); the modules beside it only move bytes, descriptors and
signals; ``compile/`` turns a graph into a flow; ``cli/`` is chronetixctl.
"""
