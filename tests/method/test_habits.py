"""The table of habits names what the base's wrong answers have in common."""

import random

from conftest import small_model, some_problems

from nanov2.domains.order.demos import Noise, weak_critique, weak_proof
from nanov2.domains.order.domain import OrderDomain, errors
from nanov2.domains.order.world import write_critique
from nanov2.method.figures import Bench
from nanov2.method.habits import TASKS, habit_table
from nanov2.records import ProblemRecord
from nanov2.run.config import load_config

SOUND = dict.fromkeys(
    ("jump", "overstate", "stop", "stray", "lenient", "pile_on", "blame_ends", "lookup", "whole"), 0.0
)


def errors_of(**habit):
    """The kinds of error in critiques of jumping proofs by a critic of one habit."""
    rng, found = random.Random(0), set()
    noise = Noise(**SOUND | {"score": 0.0} | habit)
    for p in some_problems(60, chain=(3, 4)):
        steps = weak_proof(rng, p, Noise(**SOUND | {"jump": 1.0, "overstate": 1.0}))
        found.update(errors(p, steps, write_critique(weak_critique(rng, p, steps, noise))))
    return found


def test_each_habit_of_a_critic_is_named_for_what_it_is():
    assert errors_of() == set()
    assert errors_of(lenient=1.0) == {"passes over another relation"}
    assert errors_of(pile_on=1.0) == {"finds fault with what follows a gap"}
    assert errors_of(blame_ends=1.0) == {"passes over a gap", "blames the ends of the chain"}
    assert errors_of(excuse=1.0) == {"passes over a gap"}
    assert errors_of(score=1.0) == {"a score that does not follow"}
    assert "looks a relation up wrongly" in errors_of(lookup=0.5)


def test_the_table_counts_what_is_wrong_in_every_task_at_both_temperatures(tokenizer, prompts, ranks):
    config = load_config("configs/smoke.toml")
    domain, model = OrderDomain(config), small_model(tokenizer)
    problems = [ProblemRecord(p.text, p.kind) for p in some_problems(6)]
    table = habit_table(Bench.of(prompts, domain.truth, config, ranks), domain, model, problems)
    assert [row[0] for row in table["rows"] if row[0]] == [f"{t}s that are wrong" for t in TASKS.values()]
    assert table["columns"][2:] == ["T = 1", "T = 0"]
    assert table["rows"][0][2] == 6  # a model without training proves nothing
