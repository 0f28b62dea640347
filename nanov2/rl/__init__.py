"""GRPO and supervised training."""
