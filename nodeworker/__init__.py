"""Runs one plugin: what its author uses (``api``), and the processes around it.

The same plugin runs in a process of its own (``process``), in one process with the whole flow (``inprocess``), and in a
unit test (``chronetix.testing``). ``engine`` is what these have in common: the plugin's loop. Authors import
``chronetix``.
"""
