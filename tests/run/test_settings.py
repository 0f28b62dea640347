"""Settings: every field of every section refuses what it cannot be, in one line, before anything is made."""

import dataclasses
import json
import math
import typing
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanov2 import settings
from nanov2.errors import InputError
from nanov2.run.config import Config, describe, from_dict, load_config, sections, trained_sections
from nanov2.settings import Within

NO_NUMBERS = [math.nan, math.inf, -math.inf, True, "x", None, [1], {"a": 1}, 10**400]


def every_field():
    """(section, field, type) of all settings; the section of seed, laps, expert is ""."""
    for name, kind in settings.hints(Config).items():
        if name not in sections():
            yield "", name, kind
    for section, kind in {**sections(), "grpo": sections()["selfverify"]}.items():
        for name, hint in settings.hints(kind).items():
            yield section, name, hint


def out_of_range(kind):
    """Values that a field of this type must refuse."""
    if typing.get_origin(kind) is Annotated:
        base, bounds = typing.get_args(kind)
        below = bounds.low if bounds.above else bounds.low - 1
        values = [
            below if below or not bounds.or_zero else -1,
            bounds.high + max(1, bounds.high),
            -1e9,
            10**12 + 1,
        ]
        if bounds.high >= 10**12:
            values.remove(10**12 + 1)
        return NO_NUMBERS + [base(v) for v in values] + ([0.5, 1e9] if base is int else [])
    if typing.get_origin(kind) is Literal:
        return ["", "foo", 1, None, True, typing.get_args(kind)[0] + "x"]
    if kind == tuple[str, ...]:
        return [[1], 7, None, ["x"], "x", [{"a": 1}], ["a\nb"]]
    if typing.get_origin(kind) is tuple:
        return [[], [1], [1, 2, 3], [0, 2], [3, 2], [2, 10**9], [1, math.nan], ["a", "b"], 7, None]
    if kind is bool:
        return [0, 1, "yes", None]
    if kind is str:
        return [0, None, "a\nb", "\0", "x" * 5000, "\ud800"]
    return [7, "x", {"unknown": 1}, [1]]  # a section of the model's that may be missing


@pytest.mark.parametrize(
    "section, field, kind", [pytest.param(*f, id=".".join(f[:2])) for f in every_field()]
)
def test_every_field_refuses_what_it_cannot_be_by_name(section, field, kind):
    for value in out_of_range(kind):
        tree = {section: {field: value}} if section else {field: value}
        with pytest.raises(InputError) as refused:
            from_dict(tree, "x.toml")
        text = str(refused.value)
        assert text.startswith("x.toml: ") and field.split("_")[-1] in text and "\n" not in text, (
            value,
            text,
        )


def test_every_number_has_bounds_and_every_field_its_help():
    for section, field, kind in every_field():
        assert kind not in (int, float), f"{section}.{field}"
        if section in sections():
            assert sections()[section].__dataclass_fields__[field].metadata.get("help"), f"{section}.{field}"
    text = describe()
    assert "init               " in text and "(   " not in text


@given(st.sampled_from(list(every_field())), st.floats() | st.integers() | st.text() | st.none())
def test_any_value_is_taken_or_refused_in_one_line(where, value):
    section, field, _ = where
    tree = {section: {field: value}} if section else {field: value}
    try:
        config = from_dict(tree, "x.toml")
    except InputError as e:
        assert "\n" not in str(e)
    else:  # what is taken can be written and read again
        assert from_dict(json.loads(json.dumps(config.to_dict())), "y") == config


@pytest.mark.parametrize(
    "override, message",
    [
        ("--verifier.init=generater", "unknown field verifier.init"),
        ("--generator.init=verifer", "did you mean verifier?"),
        (
            "--selfverify.reward=alphabeta",
            'selfverify.reward must be one of "final", "alpha_beta".*alpha_beta?',
        ),
        ("--grpo.loss_type=dapoo", "grpo.loss_type must be .*did you mean dapo?"),
        ("--grpo.scale=stdd", "grpo.scale must be .*did you mean std?"),
        ("--generator.judge=endpiont", "did you mean endpoint?"),
        ("--autolabel.rule=consensos", "did you mean consensus?"),
        ("--autolabel.disputed=rihgt", "did you mean right?"),
        ("--parallel.shard=ful", "did you mean full?"),
        ("--parallel.precision=bf61", "did you mean bf16?"),
        ("--generator.keep_best=thruth", "did you mean truth?"),
        (
            "--expert=human",
            'expert must be one of "exact", "grades", "marks", "person", "page", or the path of',
        ),
        ("--expert=exatc", "did you mean exact?"),
        ("--coldstart.temperature=2", "unknown field coldstart.temperature"),
        ("--verifier.alpha=0.5", "unknown field verifier.alpha"),
        ("--verifier.meta_gate=false", "unknown field verifier.meta_gate"),
        ("--meta.judge=endpoint", "unknown field meta.judge"),
        ("--generator.max_turns=3", "unknown field generator.max_turns; did you mean generator.max_tokens?"),
        ("--lap_verifier2.init=previos", "did you mean previous?"),
        ("--verifier2.init=previous", 'verifier2.init must be one of "base"'),
        ("--grpo.batch_row=3", "unknown field grpo.batch_row; did you mean grpo.batch_rows?"),
        ("--model.n_layers=1000000000", "model.n_layers must be from 1 to 1,000, found 1000000000"),
        ("--model.vocab_size=9", "follows from the tokenizer"),
        ("--model.dim=6", "must be a multiple"),
        ("--autolabel.k=9", "autolabel: k 9"),
        ("--world.lap_facts=20", "difficulty"),
        ("--search.issues_if_right=0.8", "search: issues_if_wrong 0.7 must be above"),
        ("--model.latent=3", "model.latent must be a section"),
    ],
)
def test_a_choice_or_bound_that_is_wrong_is_refused_at_start(override, message):
    with pytest.raises(InputError, match=message.replace("?", "\\?")):
        load_config(None, [override])


def test_more_rows_than_any_machine_holds_are_refused():
    with pytest.raises(InputError, match="prompts 60,000 times samples 60,000 must be at most"):
        load_config(None, ["--grpo.prompts=60000", "--grpo.samples=60000"])


def test_defaults_of_grpo_reach_the_sections_that_have_them():
    config = load_config(None, ["--grpo.judge_samples=3", "--grpo.steps=7"])
    assert config.selfverify.judge_samples == config.lap_verifier2.judge_samples == 3
    assert {config.phase(name).steps for name in trained_sections() if not name.startswith("lap_")} == {7}


def test_bounds_say_what_they_hold():
    off = Within(0.01, 100, or_zero=True)
    assert 0 in off and 0.01 in off and 0.001 not in off and math.nan not in off
    assert 0 not in Within(0, 1, above=True) and str(Within(0, 1000)) == "from 0 to 1,000"
    assert dataclasses.is_dataclass(sections()["verifier"])
