"""Parity and divisibility: the first proofs that everybody learns, with an exact expert."""
