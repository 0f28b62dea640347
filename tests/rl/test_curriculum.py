"""Prompts drawn by what they taught last: what is drawn, that it goes on, and that ranks agree."""

import json
from collections import Counter

import pytest
from conftest import ProveTask, some_problems

from nanov2.records import ProblemRecord
from nanov2.rl.config import GRPOConfig
from nanov2.rl.grpo import Clock, rollout_groups
from nanov2.rl.task import Rewards
from nanov2.rl.trainer import Curriculum, Stream, make_stream

ITEMS = list(range(40))


def test_items_whose_groups_varied_come_more_often_and_none_is_lost():
    stream, counts = Curriculum(ITEMS, 1), Counter()
    for _ in range(400):
        taken = stream.take(8)
        assert len(set(taken)) == 8
        counts.update(taken)
        stream.saw([0.4 if i < 10 else 0.0 for i in taken])
    useful = sum(counts[i] for i in range(10))
    assert useful > 0.5 * 400 * 8  # of a quarter of the items
    assert all(counts[i] for i in ITEMS)


def test_before_anything_is_known_all_items_are_alike():
    counts = Counter(i for seed in range(400) for i in Curriculum(ITEMS, seed).take(8))
    assert all(40 < counts[i] < 130 for i in ITEMS)  # 80 each


def test_a_curriculum_goes_on_from_a_checkpoint_as_if_it_had_not_stopped():
    config = GRPOConfig(draw="variance")

    def draw(stream, steps):
        taken = []
        for _ in range(steps):
            taken += [stream.take(6)]
            stream.saw([None if i % 7 == 0 else (i % 5) / 5 for i in taken[-1]])
        return taken

    whole, first = make_stream(config, ITEMS, 3, {}), make_stream(config, ITEMS, 3, {})
    expected = draw(whole, 9)
    start = draw(first, 4)
    again = make_stream(config, ITEMS, 3, json.loads(json.dumps(first.state())))
    assert start + draw(again, 5) == expected


def test_more_items_than_there_are_come_again():
    assert Counter(Curriculum([1, 2], 0).take(5)).keys() == {1, 2}


def test_a_group_that_nobody_scored_keeps_its_last_deviation():
    stream = Curriculum(ITEMS, 1)
    first = stream.take(2)
    stream.saw([0.3, 0.1])
    stream._taken = [ITEMS.index(i) for i in first]
    stream.saw([None, 0.2])
    assert [stream.spreads[i] for i in first] == [0.3, 0.2]


class FewTask(ProveTask):
    """Rewards by the item: its answers vary or do not."""

    def rewards(self, items, rollouts):
        return Rewards([float(item.kind == "varied" and i % 2) for i, item in enumerate(items)])


def test_the_deviations_are_told_in_the_order_drawn(tokenizer, prompts, model, ranks):
    problems = some_problems(4)
    items = [ProblemRecord(p.text, "varied" if i in (0, 3) else "") for i, p in enumerate(problems)]
    config = GRPOConfig(prompts=4, samples=4, max_tokens=4, refill=0)
    told = []
    task = FewTask(prompts)
    rollout_groups(model, tokenizer, task, lambda n: items, config, ranks, 0, Clock(), told.append)
    assert told == [pytest.approx([0.5, 0, 0, 0.5])]


def test_a_uniform_stream_learns_nothing():
    stream = make_stream(GRPOConfig(), ITEMS, 3, {"cursor": 5})
    assert isinstance(stream, Stream) and stream.saw([0.1]) is None and stream.state() == {"cursor": 5}
