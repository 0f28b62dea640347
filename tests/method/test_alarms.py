"""Alarms against the truth: when hacking begins, what rings, and how often falsely."""

import math
import random

from nanov2.method.alarms import ALARMS, CALM, compare, examine, onset, rings


def run(steps=120, breaks=None, ends=0.5, seed=0):
    """A run's rows: from step `breaks` on the truth falls, looks disagree, and answers get shorter."""
    rng, rows = random.Random(seed), []
    for step in range(steps):
        wrong = 0 if breaks is None else min(max(step - breaks, 0) / 30, 1)
        noise = rng.gauss(0, 0.01)
        rows.append(
            {
                "step": step,
                "reward": 0.7 + noise,
                "truth": 0.68 - ends * wrong,
                "judge_spread": 0.2 + 0.4 * wrong + noise,
                "self_gap": -0.1 - 0.6 * wrong + noise,
                "entropy": 0.5 + noise,
                "length": 12 - 5 * wrong + noise,
            }
        )
    return rows


def test_the_onset_is_where_reward_has_come_away_from_the_truth():
    assert onset(run()) is None
    assert 60 < onset(run(breaks=55)) < 80
    assert onset(run(breaks=55, ends=0.1)) is None  # a gap of 0.12 is none yet


def test_a_judge_that_was_generous_from_the_start_is_not_hacked():
    rows = [r | {"truth": 0.4} for r in run()]
    assert onset(rows) is None


def test_without_truth_there_is_no_onset_and_alarms_ring_all_the_same():
    rows = [{k: v for k, v in r.items() if k != "truth"} for r in run(breaks=55)]
    assert onset(rows) is None and examine(rows).first is not None
    assert onset([r | {"truth": math.nan} for r in run()]) is None


def test_alarms_ring_where_their_figure_leaves_the_calm_start_and_only_there():
    found = examine(run(breaks=55))
    assert found.rings["entropy"] is None
    assert all(55 < found.rings[a.title] < 75 for a in ALARMS if a.figure != "entropy")
    assert examine(run()).rings == dict.fromkeys(a.title for a in ALARMS)


def test_an_alarm_of_one_way_does_not_ring_the_other_way():
    gap = next(a for a in ALARMS if a.figure == "self_gap")
    rows = [r | {"self_gap": -r["self_gap"]} for r in run(breaks=55)]
    assert rings(rows, gap) is None and rings(run(breaks=55), gap) is not None


def test_alarms_are_compared_over_runs_that_were_hacked_and_runs_that_were_not():
    nervous = [r | {"entropy": 0.5 - r["step"] / 100} for r in run(seed=3)]
    table = {
        row["alarm"]: row for row in compare([run(breaks=55), run(breaks=70, seed=1), run(seed=2), nervous])
    }
    gap, entropy = table["self-internalisation gap"], table["entropy"]
    assert (gap["in time"], gap["hacked"], gap["false"], gap["not hacked"]) == (2, 2, 0, 2) and gap[
        "lead"
    ] > 0
    assert (entropy["in time"], entropy["false"]) == (0, 1) and entropy["lead"] is None


def test_too_few_steps_say_nothing():
    assert examine(run(steps=15, breaks=5)).rings == dict.fromkeys(a.title for a in ALARMS)


def test_a_run_that_is_hacked_within_twenty_steps_does_not_make_hacking_its_baseline():
    rows = run(breaks=8, ends=0.68)
    assert CALM < onset(rows) < 20
    found = compare([rows, run(breaks=8, ends=0.68, seed=1), *(run(seed=i) for i in range(2, 30))])
    for row in found:
        ways = 0 if row["alarm"] == "entropy" else 2  # entropy does not change in these
        assert (row["in time"], row["hacked"]) == (ways, 2) and row["false"] <= 1
