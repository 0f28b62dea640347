"""The time that a run has left: what it is told by, and that nothing is told where nothing is known."""

import pytest

from nanov2.run.config import load_config
from nanov2.run.left import Spent, clock, estimate, steps_seconds, time_left
from nanov2.run.phases import CYCLE, PHASES, flywheel, planned_steps

SETTINGS = {"laps": 2, "verifier": {"steps": 80}, "meta": {"steps": 100}, "verifier2": {"steps": 80}}
SETTINGS |= {"lap_verifier2": {"steps": 50}, "generator": {"steps": 150}}


def rows(n, seconds):
    return [{"step": i, "seconds": {"train": seconds - 0.5, "data": 0.5}} for i in range(n)]


def test_the_cost_of_a_stopped_phase_counts_the_steps_before_the_stop():
    assert steps_seconds(rows(4, 2.5)) == 10.0 and steps_seconds([]) == 0.0
    odd = [{"step": 0}, {"step": 1, "seconds": "x"}, {"step": 2, "seconds": {"a": None, "b": float("nan")}}]
    assert steps_seconds(odd) == 0.0


def test_a_phase_takes_its_steps_and_what_stands_beside_them():
    done = {("verifier2", 1): Spent.of(180.0, rows(80, 2.0))}
    assert done["verifier2", 1] == Spent(2.0, 20.0)
    assert estimate(("verifier2", 2), done, SETTINGS) == 20 + 50 * 2
    done["verifier2", 2] = Spent(3.0, 1.0)
    assert estimate(("verifier2", 3), done, SETTINGS) == 1 + 50 * 3  # the last lap says most


def test_a_phase_is_told_by_its_like_and_otherwise_not_at_all():
    done = {("verifier", 1): Spent(2.0, 10.0)}
    assert estimate(("meta", 1), done, SETTINGS) == 10 + 100 * 2
    assert estimate(("generator", 1), done, SETTINGS) is None
    assert estimate(("autolabel", 2), {("autolabel", 1): Spent(0.0, 7.0)}, SETTINGS) == 7.0
    assert all(name in PHASES for phase in CYCLE for name in phase.like)


def test_what_is_told_says_what_it_rests_on():
    todo = [("meta", 1), ("verifier2", 1), ("generator", 1)]
    assert time_left(todo, {("base", 1): Spent(0.1, 3.0)}, SETTINGS) == ""
    done = {("verifier", 1): Spent(2.0, 10.0)}
    told = time_left(todo, done, SETTINGS)
    assert told == "at least 6:20 left by the phases so far; 1 to come are of new kinds"
    assert time_left(todo[:2], done, SETTINGS) == "about 6:20 left by the phases so far"
    assert time_left(todo[:2], done, SETTINGS, running=60.0).startswith("about 7:20 left")
    assert clock(3_725) == "1:02:05"


@pytest.mark.parametrize("settings", [{}, {"meta": None}, {"meta": []}, {"meta": {"steps": "many"}}])
def test_settings_that_say_no_steps_are_none(settings):
    assert planned_steps(settings, "meta", 1) is None
    assert estimate(("meta", 1), {("verifier", 1): Spent(2.0, 10.0)}, settings) == 10.0


def test_every_phase_of_a_second_lap_is_known_after_the_first():
    config = load_config("configs/smoke.toml")
    done = {key: Spent(1.0, 1.0) for key in flywheel(config) if key[1] == 1}
    later = [key for key in flywheel(config) if key[1] == 2]
    assert later and all(estimate(key, done, config.to_dict()) is not None for key in later)
