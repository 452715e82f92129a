"""A compiled flow of Flowbuilder, and two nodes for it."""
