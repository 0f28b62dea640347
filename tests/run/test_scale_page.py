"""docs/scale.md: its table is what --dry-run says."""

from pathlib import Path

import pytest

from nanov2.run.config import load_config
from nanov2.run.costs import HARDWARE
from nanov2.run.plan import make_plan

ROOT = Path(__file__).parents[2]
LORA, WHOLE, EIGHT = (f"configs/qwen3-{name}.toml" for name in ("1.7b-24gb", "1.7b-1gpu", "8b-8gpu"))
BIG = ["--pretrained.folder=models/Qwen3-8B", "--pretrained.shape=configs/shapes/qwen3-8b.json"]
HERE = ["--rollout.engine=vllm", "--rollout.start=true", "--grpo.judge=engine"]
THERE = [
    *("--rollout.engine=vllm", '--rollout.urls=["http://a:8000"]', '--rollout.judge_urls=["http://a:8001"]'),
    "--grpo.judge=engine",
]
BF16 = ["--parallel.precision=bf16", "--grpo.micro_tokens=16384", "--grpo.pack_tokens=16384"]


def share(value):
    return [f"--rollout.options=--gpu-memory-utilization={value}"]


@pytest.mark.parametrize(
    "path, flags, ranks, card, phase",
    [
        (LORA, [], 1, "rtx4090-24gb", "verifier2"),
        (LORA, [*HERE, *share(0.25)], 1, "rtx4090-24gb", "generator"),
        (WHOLE, BF16, 1, "h100-80gb", "selfverify"),
        (LORA, BIG, 1, "h100-80gb", "verifier2"),
        (LORA, [*BIG, *HERE, *share(0.28)], 1, "h100-80gb", "generator"),
        (EIGHT, [], 8, "h100-80gb", "selfverify"),
        (EIGHT, THERE, 8, "h100-80gb", "selfverify"),
        (EIGHT, ["--parallel.shard=hybrid"], 32, "h100-80gb", "selfverify"),
    ],
)
def test_the_table_is_what_a_dry_run_says(path, flags, ranks, card, phase, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = make_plan(load_config(path, flags), ranks, min(ranks, 8), HARDWARE[card])
    p = plan.phases[phase]
    assert p.peak == max(other.peak for other in plan.phases.values()) < 0.9 * HARDWARE[card].memory
    figures = f"| {p.held / 1e9:.1f} | {p.peak / 1e9:.1f} | {p.seconds:.3g} ({p.rows} rows) |"
    assert figures in (ROOT / "docs" / "scale.md").read_text(), figures
