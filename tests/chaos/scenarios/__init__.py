"""All scenarios by name: one module for each family."""

from __future__ import annotations

from tests.chaos.scenarios import clients, clocks, kills, stops, upgrades, wants
from tests.chaos.scenarios.scenario import Scenario

ALL: dict[str, Scenario] = {
    scenario.name: scenario
    for family in (kills, stops, upgrades, clients, wants, clocks)
    for scenario in family.SCENARIOS
}
