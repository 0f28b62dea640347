"""What proofs are written in: languages, worlds, and who knows the truth."""
