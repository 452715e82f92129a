"""All checks, in the order in which they are made."""

from __future__ import annotations

from chronetixctl.conformance.check import REGISTRY
from chronetixctl.conformance.checks import handover, hostile, inputs, life, messages, outputs, succession, survival

MODULES = (life, messages, inputs, outputs, succession, hostile, handover, survival)

CHECKS = tuple(each for module in MODULES for each in REGISTRY if each.run.__module__ == module.__name__)
