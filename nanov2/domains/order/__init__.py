"""The embedded world: chains of relations, with an exact expert."""
