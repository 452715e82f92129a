"""The flow of the README."""
