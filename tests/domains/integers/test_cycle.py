"""The whole cycle on the integers world, as small as it can be: that all figures are there, not that it learns."""



SMALLEST = [
    "--model.dim=32",
    "--model.ffn_dim=64",
    "--world.problems=60",
    "--world.hard_problems=40",
    "--world.held_out=6",
    "--world.validation=3",
    "--base.steps=120",
    "--base.batch=8",
    "--coldstart.problems=16",
    "--coldstart.subset=24",
    "--grpo.steps=1",
    "--grpo.prompts=2",
    "--grpo.samples=3",
    "--consolidate.steps=2",
    "--autolabel.problems=4",
    "--eval.proofs=8",
    "--eval.samples=1",
    "--eval.rounds=1",
]
