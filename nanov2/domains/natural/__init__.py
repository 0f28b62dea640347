"""Mathematics in natural language: rubrics, prompts, parsers, graded proofs."""
