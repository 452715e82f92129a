"""A module that cannot be imported."""

anything = None
raise RuntimeError("this module is broken")
