"""Flows that run on real data."""
