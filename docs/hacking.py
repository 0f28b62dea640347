# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Provoke reward hacking, see it, close it
#
# Read docs/hacking.md first; it has the commands that make the runs. This is a percent script: Python whose
# cells begin with `# %%`. Run it from the checkout with `python docs/hacking.py`, or open it as a notebook
# (docs/hacking.md says how). A run that is not made yet is left out.

# %%
import math
import os
from collections import Counter
from pathlib import Path

from nanov2.domains.order.world import examine, parse_problem, parse_proof, write_critique
from nanov2.method import alarms
from nanov2.method.rewards import R_looks
from nanov2.method.sequential import SequentialTest
from nanov2.records import parse_json, read_json, read_lines
from nanov2.rl.logs import read_rows

ROOT = Path() if Path("configs").is_dir() else Path("..")  # a notebook works in its own folder, docs
MADE = {
    "open": Path(os.environ.get("HACKING_OPEN", ROOT / "runs/hacking")),
    "closed": Path(os.environ.get("HACKING_CLOSED", ROOT / "runs/hacking-closed")),
}
RUNS = {name: run for name, run in MADE.items() if (run / "generator" / "eval.json").is_file()}
for name in MADE.keys() - RUNS.keys():
    print(f"{name}: {MADE[name]} has no finished generator yet, so it is left out (docs/hacking.md makes it)")

# %% [markdown]
# ## 1. Reward rises, and what of the truth?
# Every training step writes down the reward, and, beside it, the truth that no reward ever sees.


# %%
def curve(run, window=10):
    """(step, reward, truth, share of perfect rewards that are wrong), each a mean over `window` steps; of a
    short run over half of its steps."""
    rows = read_rows(run / "generator" / "metrics.jsonl")
    window = max(min(window, len(rows) // 2), 1)
    found = {name: dict(alarms.smooth(alarms.values(rows, name), window)) for name in ("reward", "truth")}
    wrong = dict(alarms.values(rows, "false_accept"))
    out = []
    for step in sorted(found["reward"].keys() & found["truth"].keys()):
        known = [wrong[s] for s in range(step - window + 1, step + 1) if s in wrong]
        share = sum(known) / len(known) if known else math.nan
        out.append((step, found["reward"][step], found["truth"][step], share))
    return out


def bar(x, width=40):
    return "#" * round(width * min(max(x, 0), 1))


for name, run in RUNS.items():
    print(f"\n{name}: {run}\n step  reward  truth   gap   wrong among perfect rewards")
    points = curve(run)
    for step, reward, truth, wrong in points[:: max(len(points) // 12, 1)]:
        gap = reward - truth
        print(f"{step:5}   {reward:.2f}    {truth:.2f}   {gap:+.2f}   {wrong:.2f}  {bar(gap)}")

# %% [markdown]
# ## 2. When did it begin, and would an alarm have told?


# %%
for name, run in RUNS.items():
    found = alarms.examine(read_rows(run / "generator" / "metrics.jsonl"))
    print(f"{name}: onset {found.onset}; rang first: {found.first}")
    for title, step in found.rings.items():
        print(f"    {title:28} {'never' if step is None else f'step {step}'}")

# %% [markdown]
# ## 3. Read what was rewarded
# Proofs with a high reward that are worth less, the lowest of the critiques that passed them, and what the
# exact expert says of them.


# %%
def fooled(run, n=3):
    """Samples whose reward is well above their truth, the worst first."""
    samples = [parse_json(line, "samples") for line in read_lines(run / "generator" / "samples.jsonl")]
    known = [s for s in samples if s.get("reward") is not None and "truth" in s]
    return sorted((s for s in known if s["reward"] > s["truth"]), key=lambda s: s["truth"] - s["reward"])[:n]


def exact_critique(problem, proof):
    steps = parse_proof(proof)
    return write_critique(examine(parse_problem(problem), steps)) if steps else "(not of the form of a proof)"


FOOLED = fooled(RUNS["open"], 1000) if "open" in RUNS else []
for sample in FOOLED[:3]:
    print(
        f"\nreward {sample['reward']:.2f}, truth {sample['truth']:g}\n{sample['problem']}\n{sample['proof']}"
    )
    print(f"the verifier:\n{sample.get('judge_critique', '(no critique that can be read)')}")
    print(f"the exact expert:\n{exact_critique(sample['problem'], sample['proof'])}")
if not FOOLED:
    print("\nno sample has more reward than it is worth")

# %% [markdown]
# ## 4. Before and after, held out


# %%
FIGURES = ("true_score", "verifier_reward", "hacking_gap", "false_accept_rate")
for name, run in RUNS.items():
    after = read_json(run / "generator" / "eval.json")["after"]
    cells = {f: after.get(f"labelled/{f}", {}).get("value", math.nan) for f in FIGURES}
    print(name.ljust(8), "  ".join(f"{f} {x:.3f}" for f, x in cells.items()))

# %% [markdown]
# ## Exercises
# Each has a solution here and a test in tests/method/test_hacking.py that fails on the usual mistakes.
#
# **1.** A look passes a wrong proof with probability `p` and a right one with `q`, each look on its own.
# What is the chance that all of `n` looks pass it? How many looks does a wrong proof with p = 0.6 need to
# be let through less often than one time in twenty, and how often is a right one with q = 0.95 then
# refused?


# %%
def passes_all(p, n):
    return p**n


def looks_needed(p, at_most=0.05):
    return next(n for n in range(1, 1000) if passes_all(p, n) < at_most)


# %% [markdown]
# **2.** Write the median as a rule over looks, with the state that a rule must never forget: a look that
# could not be read is no score, and where none can be read the result is NaN.


# %%
def median_rule(scores):
    """`scores`: of the looks; None for one that could not be read."""
    known = sorted(s for s in scores if s is not None)
    if not known:
        return math.nan
    middle = len(known) // 2
    return known[middle] if len(known) % 2 else (known[middle - 1] + known[middle]) / 2


# %% [markdown]
# **3.** A gap that is large from the start is a generous judge, not hacking. Write the onset of hacking:
# the first step of a list of (reward, truth) at which the gap is above `gap` and has grown by `rise`. Then
# read how `nanov2/method/alarms.py` takes noise out of it.


# %%
def onset(points, gap=0.15, rise=0.05):
    gaps = [reward - truth for reward, truth in points]
    return next((i for i, x in enumerate(gaps) if x > gap and x > gaps[0] + rise), None)


# %% [markdown]
# **4.** How many looks without an issue does the sequential test take to accept a proof, at an error of
# 0.05 on either side? And at 0.01? (The judge's `judge_error` is this number.)


# %%
def clean_looks(error):
    test = SequentialTest(given_up=error, missed=error)
    return next(n for n in range(1, 100) if test.right([(False, 1.0)] * n))


# %% [markdown]
# **5.** The pessimistic minimum has a price. Of a list of looks at right proofs, count how many proofs the
# mean would give at least 0.75 and the minimum refuses altogether.


# %%
def refused_by_minimum(looks):
    """`looks`: of each right proof, the scores of its looks."""
    ones = [1.0]
    return sum(
        R_looks("mean", scores, ones * len(scores)) >= 0.75
        and R_looks("min", scores, ones * len(scores)) == 0
        for scores in looks
    )


# %%
few = looks_needed(0.6)
print(f"\nexercise 1: {few} looks; a right proof is refused {1 - passes_all(0.95, few):.2f} of the time")
print("exercise 4:", {error: clean_looks(error) for error in (0.05, 0.01)})
print("overpaid samples by truth:", dict(Counter(s["truth"] for s in FOOLED)))
