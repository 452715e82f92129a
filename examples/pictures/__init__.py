"""Pictures as arrays, from end to end."""
