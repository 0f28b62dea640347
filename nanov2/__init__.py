"""nanov2: the DeepSeekMath-V2 cycle (arXiv 2511.22570) in readable PyTorch.

Data flows one way, and a module imports only from those before it in this list:
world, tokenizer, records → prompts → model → sampler → rewards, expert, reward_model → grpo, sft → evaluate.
"""

__version__ = "0.1.0"
