"""A whole flow in one process: ``chronetixctl run``, and unit tests."""
