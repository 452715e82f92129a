"""All scenarios by name: one module for each family."""

from __future__ import annotations

from tests.chaos.scenarios import clients, clocks, kills, stops, updates, upgrades, wants
from tests.chaos.scenarios.scenario import Scenario

FAMILIES = (kills, stops, clients, wants, clocks, updates, upgrades)
ALL: dict[str, Scenario] = {scenario.name: scenario for family in FAMILIES for scenario in family.SCENARIOS}
