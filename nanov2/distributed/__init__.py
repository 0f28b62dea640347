"""Ranks, shards, checkpoints, clean stops."""
