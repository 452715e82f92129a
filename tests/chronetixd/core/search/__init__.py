"""A bounded search over the tables of flows, roll-outs and routes."""
