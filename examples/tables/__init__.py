"""Measurements as Arrow tables."""
