"""Records, configuration, rewards and labels: good input works, bad input says what, where and what to do."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanov2.domains.domain import open_domain
from nanov2.domains.language import Demonstration
from nanov2.domains.order.domain import OrderDomain, OrderLanguage
from nanov2.errors import InputError
from nanov2.method import consensus as labelling
from nanov2.method.consensus import (
    RULES,
    Assessed,
    Rule,
    calibrate,
    consensus,
    doubt,
    majority,
    mean_label,
    settled,
    single,
)
from nanov2.method.experts import ExactExpert, FileExpert, PersonExpert
from nanov2.method.figures import interval
from nanov2.method.judges import Judgement
from nanov2.method.labels import Labelled
from nanov2.method.rewards import NAN, R_Z, R_format, R_gated, R_generator, R_score, R_verifier
from nanov2.records import CritiqueRecord, ProofRecord, read_jsonl, write_atomically, write_jsonl
from nanov2.rl.logs import Progress
from nanov2.rl.trainer import counted_tokens
from nanov2.run.config import load_config
from nanov2.run.phase import initial_weights

CONFIGS = ("configs/proofworld.toml", "configs/smoke.toml")


# --- rewards: every formula ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "predicted, s, reward", [(1, 1, 1), (0.5, 1, 0.5), (0, 1, 0), (0, 0, 1), (1, 0.5, 0.5)]
)
def test_R_score_is_one_minus_the_distance(predicted, s, reward):
    assert R_score(predicted, s) == reward
    assert R_verifier("parsed", predicted, s) == reward
    assert R_verifier(None, predicted, s) == 0


def test_R_format_is_whether_it_parsed():
    assert (R_format(None), R_format(0.0), R_format("x")) == (0.0, 1.0, 1.0)


def test_R_gated_multiplies_and_keeps_a_missing_answer_missing():
    assert R_gated(1, 0.5, 0.5) == 0.25
    assert R_gated(0, 1, NAN) == 0 and R_gated(1, 0, NAN) == 0
    assert math.isnan(R_gated(1, 1, NAN))


def test_R_generator_uses_the_papers_weights():
    assert R_Z(0.5, 1.0, 0.5) == 0.25
    assert R_generator(1, 1, 1) == pytest.approx(1)
    assert R_generator(1, 1, 0) == pytest.approx(0.76) and R_generator(1, 0, 1) == pytest.approx(0.24)
    assert R_generator(0, 1, 1) == 0


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_rewards_stay_between_zero_and_one(a, b, c):
    for value in (R_score(a, b), R_gated(1, a, b), R_Z(a, b, c), R_generator(1, a, b)):
        assert 0 <= value <= 1


# --- labels by consensus ---------------------------------------------------------------------------


def assessed(score, *confirmations):
    return Assessed("critique", score, score is not None and score < 1, confirmations)


def test_consensus_is_the_papers_rule():
    clean, fatal, slip = assessed(1.0), assessed(0.0, 1, 1, 0), assessed(0.5, 1, 1, 1)
    invented = assessed(0.0, 0, 0.5, 1)
    assert consensus([clean] * 4, k=2) == 1.0
    assert consensus([clean, clean, invented], k=2) == 1.0  # no confirmed issue
    assert consensus([clean, invented, invented], k=2) is None  # the judges disagree
    assert consensus([clean, invented, invented], k=2, disputed="right") == 1.0  # the paper's letter
    assert consensus([fatal, fatal, slip, clean], k=2) == 0.0  # the lowest score, given k times
    assert consensus([fatal, slip, slip], k=2) is None  # the lowest has not k valid critiques
    assert consensus([slip, slip, invented], k=2) == 0.5
    assert consensus([assessed(None)] * 3, k=1) is None  # nothing that could be read


def test_a_majority_is_more_than_half_of_the_answers():
    assert assessed(0.0, 1, 1, 0).valid and assessed(0.0, 1, 1, None).valid
    assert not assessed(0.0, 1, 0).valid and not assessed(0.0).valid


def test_simpler_labels():
    critiques = [assessed(0.5, 1), assessed(1.0), assessed(1.0), assessed(None)]
    assert (single(critiques), mean_label(critiques), majority(critiques)) == (0.5, 1.0, 1.0)


def test_an_interval_counts_problems_not_samples_and_never_shrinks_to_a_point():
    same = interval([1.0, 0.0] * 50, [i // 2 for i in range(100)])
    wide = interval([1.0, 1.0, 0.0, 0.0] * 25, [i // 2 for i in range(100)])
    assert wide["high"] - wide["low"] > same["high"] - same["low"] > 0
    assert interval([1.0] * 50)["low"] < 1.0
    assert interval([math.nan, 1.0])["n"] == 1


# --- records ---------------------------------------------------------------------------------------


def test_records_round_trip_and_are_readable(tmp_path):
    rows = [ProofRecord("given …", "a < b qed", 0.5, "< in 2", "x", "expert"), ProofRecord("p", "y")]
    write_jsonl(tmp_path / "a" / "dv.jsonl", rows)
    assert read_jsonl(tmp_path / "a" / "dv.jsonl", ProofRecord) == rows
    assert "given …" in (tmp_path / "a" / "dv.jsonl").read_text()


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"problem": "x", "proof": ', "dv.jsonl:2: not valid JSON"),
        ('["x"]', "dv.jsonl:2: expected a JSON object, found list"),
        ('{"problem": "x"}', "dv.jsonl:2: field 'proof' is missing"),
        ('{"problem": "x", "proof": "y", "scroe": 1}', "dv.jsonl:2: unknown field 'scroe'"),
        ('{"problem": "x", "proof": "y", "score": 0.7}', "dv.jsonl:2: score must be 0, 0.5, 1 or null"),
        ('{"problem": "x", "proof": "y", "score": true}', "score must be"),
        ('{"problem": "x", "proof": 3}', "dv.jsonl:2: proof must be text"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    path = tmp_path / "dv.jsonl"
    path.write_text('{"problem": "p", "proof": "q"}\n' + line + "\n")
    with pytest.raises(InputError, match=message.replace("[", "\\[")):
        read_jsonl(path, ProofRecord)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read .*nowhere.jsonl"):
        read_jsonl(tmp_path / "nowhere.jsonl", ProofRecord)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_atomically(path, "old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left on device.*run again"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


# --- experts ---------------------------------------------------------------------------------------

PROBLEM = "Suppose that sets satisfy $a \\subset b$ and $b \\subset c$. Show that $a \\subset c$."
RIGHT, WRONG = "Indeed, $a \\subset b \\subset c$.", "Indeed, $a \\subset c$."


def test_experts_exact_file_and_person(tmp_path):
    proofs = [ProofRecord(PROBLEM, RIGHT), ProofRecord(PROBLEM, WRONG)]
    exact = ExactExpert(OrderDomain.truth).score_proofs(proofs)
    assert [r.score for r in exact] == [1.0, 0.0]
    write_jsonl(tmp_path / "graded.jsonl", exact)
    assert [r.score for r in FileExpert(tmp_path / "graded.jsonl").score_proofs(proofs)] == [1.0, 0.0]
    with pytest.raises(InputError, match="no score for 1 of 1"):
        FileExpert(tmp_path / "graded.jsonl").score_proofs([ProofRecord(PROBLEM, "Indeed, $b < c$.")])


def test_the_exact_expert_counts_missed_issues_where_it_is_told_to(tmp_path):
    critic = "Here is my evaluation of the solution:\n"
    critic += "- $a \\subset c$: not given, so this step is not justified.\n"
    whole = "The chain has the ends of the goal.\nIt is strong enough for the goal.\n"
    verdict = "Based on my evaluation, the final overall score should be: \\boxed{%d}"
    sound = critic.replace(
        "not given, so this step is not justified", "given as $\\subset$, so this step is justified"
    )
    records = [
        CritiqueRecord(PROBLEM, WRONG, text, None, 0.0)
        for text in (critic + whole + verdict % 0, sound + whole + verdict % 1)
    ]
    for misses, qualities in ((False, [1.0, 1.0]), (True, [1.0, 0.5])):
        graded = ExactExpert(OrderDomain.truth, misses).score_critiques(records)
        assert [r.quality for r in graded] == qualities
    with pytest.raises(InputError, match="meta.misses tells the expert"):
        load_config(None, ["--meta.misses=true", "--expert=person"])


def test_a_person_fills_in_a_file_and_nothing_written_is_lost(tmp_path):
    proofs = [ProofRecord(PROBLEM, RIGHT), ProofRecord(PROBLEM, WRONG)]
    person, path = PersonExpert(tmp_path), tmp_path / "proofs_to_score.jsonl"
    with pytest.raises(InputError, match="2 of 2 items wait"):
        person.score_proofs(proofs)
    rows = [json.loads(x) for x in path.read_text().splitlines()]
    rows[0]["score"] = 1
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(InputError, match="1 of 2 items wait"):
        person.score_proofs(proofs)
    assert json.loads(path.read_text().splitlines()[0])["score"] == 1
    rows[1]["score"] = 0
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert [(r.score, r.label) for r in person.score_proofs(proofs)] == [(1, "person"), (0, "person")]
    critiques = [CritiqueRecord(PROBLEM, WRONG, "…")]
    with pytest.raises(InputError, match="critiques_to_score.jsonl"):
        person.score_critiques(critiques)


# --- configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "start"), zip(CONFIGS, ("previous", "generator"), strict=True))
def test_shipped_configurations_load(path, start):
    config = load_config(path)
    assert config.selfverify.init == "base" and config.lap_selfverify.init == start
    assert config.laps == 2


@pytest.mark.parametrize(
    ("setting", "phase", "lap", "start"),
    [
        ("generator.init=base", "generator", 1, ("base", 1)),
        ("lap_generator.init=generator", "generator", 3, ("generator", 2)),
        ("lap_generator.init=previous", "generator", 3, ("selfverify", 2)),
        ("lap_selfverify.init=generator", "selfverify", 3, ("generator", 3)),
        ("lap_selfverify.init=previous", "selfverify", 3, ("selfverify", 2)),
        ("lap_verifier2.init=previous", "verifier2", 3, ("verifier2", 2)),
        ("lap_verifier2.init=consolidated", "verifier2", 3, ("consolidate", 3)),
    ],
)
def test_where_a_phase_starts(monkeypatch, setting, phase, lap, start):
    monkeypatch.setattr("nanov2.run.phase.starting_point", lambda run, *source: source)
    assert initial_weights(SimpleNamespace(config=load_config(None, [f"--{setting}"])), phase, lap) == start


def test_sections_inherit_and_overrides_win():
    flags = [
        "--grpo.prompts=5",
        "--meta.prompts=7",
        "--generator.lr=0.1",
        "seed=3",
        "--verifier.loss-type=gspo",
    ]
    config = load_config(CONFIGS[0], flags)
    assert (config.verifier.prompts, config.meta.prompts, config.lap_generator.prompts) == (5, 7, 5)
    assert (config.seed, config.verifier.loss_type) == (3, "gspo")
    assert config.lap_generator.lr == 0.1  # a later lap's section starts from the first lap's


@pytest.mark.parametrize(
    "override, message",
    [
        ("--verifier.stepz=3", "unknown field verifier.stepz; did you mean verifier.steps"),
        ("--verifer.steps=3", "unknown field verifer; did you mean verifier"),
        ("--grpo.top_k=3", "unknown field"),
        ("--seed=two", "seed must be int, found 'two'"),
        ("--verifier.steps=1.5", "verifier.steps must be int"),
        ("--verifier.steps=true", "verifier.steps must be int"),
        ("--verifier=3", "verifier must be a section"),
        ("--world.hard_chain=[4]", "world.hard_chain must be a list of 2"),
        ("--world.hard_facts=[20, 30]", "difficulty: 30 facts"),
        ("--model.n_heads=3", "must be a multiple"),
        ("steps", "write --section.field=value"),
    ],
)
def test_a_bad_setting_names_the_nearest_valid_one(override, message):
    with pytest.raises(InputError, match=message.replace("[", "\\[")):
        load_config(CONFIGS[0], [override])


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read configuration .*none.toml"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "x.toml").write_text("seed = = 1")
    with pytest.raises(InputError, match="x.toml: not valid"):
        load_config(tmp_path / "x.toml")


def problems_of(config):
    return open_domain(config).problems()


def test_held_out_problems_are_never_trained_on():
    sets = problems_of(load_config(CONFIGS[1]))
    texts = [p.problem for problems in sets.values() for p in problems]
    assert len(texts) == len(set(texts))
    again = problems_of(load_config(CONFIGS[1]))
    assert again == sets  # fixed by the seed


def test_harder_laps_leave_the_other_problems_as_they_are():
    plain = problems_of(load_config(CONFIGS[1], ["--laps=3"]))
    grown = problems_of(load_config(CONFIGS[1], ["--laps=3", "--world.lap_chain=1", "--world.lap_facts=1"]))
    assert all(grown[name] == records for name, records in plain.items())
    new = {"held_out_hardest", "validation_hard2", "train_hard2", "validation_hard3", "train_hard3"}
    assert grown.keys() - plain.keys() == new
    texts = [r.problem for records in grown.values() for r in records]
    assert len(texts) == len(set(texts))
    words = [
        sum(len(r.problem.split()) for r in grown[n]) / len(grown[n]) for n in ("train_hard", "train_hard3")
    ]
    assert words[1] > words[0] + 6  # two more facts a lap


def test_rules_share_one_interface():
    votes = [assessed(1.0), assessed(0.5, 1), assessed(0.5, 1), assessed(0.0, 0)]
    given = {name: Rule(name)(votes) for name in RULES}
    assert given == {
        "consensus": 0.5,
        "majority": 0.5,
        "mean": 0.5,
        "gate": 0.5,
        "worst": 0.0,
        "single": 1.0,
    }


def test_settled_labels_are_those_of_all_critiques():
    fatal, slip, clean = assessed(0.0, 1, 1, 1), assessed(0.5, 1, 1, 1), assessed(1.0)
    assert settled([fatal, slip, fatal], k=2, clean=8)  # nothing lowers a 0
    assert not settled([slip, slip], k=2, clean=8)  # two that find more would lower it
    assert not settled([clean] * 7, k=2, clean=8) and settled([clean] * 8, k=2, clean=8)
    assert not settled([clean, assessed(0.0, 0), *[clean] * 8], k=2, clean=8)


def test_calibration_finds_what_reaches_the_precision_and_its_cost():
    fatal, clean, lie = assessed(0.0, 1, 1), assessed(1.0), assessed(0.0, 1, 0)
    critiques = [[fatal] * 4] * 5 + [[clean] * 4] * 5 + [[lie, clean, clean, clean]]
    truth = [0.0] * 5 + [1.0] * 6
    best = calibrate(critiques, truth, wanted=0.7)[0]
    assert best.precision == 1 and best.coverage == 1 and 0.7 <= best.low < 0.9
    assert best.critiques <= 4
    assert calibrate(critiques, truth, wanted=0.9) == []  # eleven right labels do not show as much
    assert calibrate(critiques, [0.5] * 11, wanted=0.2) == []
    critiques[-1][0], truth[-1] = assessed(0.0, 0, 0), 0.0  # labelled wrongly, but in doubt
    best = calibrate(critiques, truth, wanted=0.7, disputed="right")[0]
    assert best.precision == 1 and best.coverage == pytest.approx(10 / 11)
    limit = Rule("consensus", best.k, "right", best.max_doubt)
    assert limit(critiques[-1]) is None and limit(critiques[0]) == 0.0


def test_critiques_of_many_proofs_tell_how_far_they_are(monkeypatch, capsys):
    monkeypatch.setattr(Progress, "SECONDS", 0.0)
    pairs = [("problem", f"proof {i}") for i in range(100)]
    critic = SimpleNamespace(verify=lambda x, y: y, meta=lambda x, y, c: c, claims_issue=lambda text: True)
    says = Judgement(0.0, ("a gap", "a gap"), (0.0, 0.0))
    looks = Judgement(0.0, (None,), (0.0,))  # no issue is confirmed: no label settles
    verifier = SimpleNamespace(samples=2, language=critic, ask=lambda asked: [says] * len(asked))
    meta = SimpleNamespace(samples=1, language=critic, ask=lambda asked: [looks] * len(asked))
    for bar in (True, False):
        found = labelling.assess_adaptively(pairs, lambda *_: (verifier, meta), 4, 2, lambda c: False, bar)
        assert [len(critiques) for critiques in found] == [4] * 100
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) <= 10 and bool(lines) == bar
        assert all("critiques and looks at them" in line and "left" in line for line in lines)


def test_doubt_puts_the_most_divided_first():
    divided = [assessed(1.0), assessed(0.0, 1), assessed(0.5, 0), assessed(1.0)]
    agreed = [assessed(0.0, 1)] * 4
    assert doubt(divided) > doubt([assessed(1.0)] * 3 + [assessed(0.0, 1)]) > doubt(agreed) == 0


def test_best_samples_are_critiques_that_give_the_label_rightly():
    record = ProofRecord("given a < b ; show a < b", "a < b qed", 0.0)
    rejected, confirmed, other = assessed(0.0, 0), assessed(0.0, 1), assessed(1.0)
    confirmed = dataclasses.replace(confirmed, critique="confirmed")
    best = Labelled(record, [rejected, other, confirmed], 0.0).best()
    assert best.turns == (("prove", record.proof), ("verify", "confirmed"))
    assert Labelled(record, [rejected, other], 0.0).best() is None


def test_a_turn_that_is_only_read_is_not_counted(tokenizer):
    turns = (("prove", "a < b qed"), ("verify", "a < b < ok ends strict \\boxed{1}"))
    document, problem = OrderLanguage(tokenizer, strict=True).document, "given a < b ; show a < b"
    whole = counted_tokens([document(Demonstration(problem, turns))])
    part = counted_tokens([document(Demonstration(problem, turns, learnt=(False, True)))])
    assert part == whole - len(tokenizer.encode(turns[0][1])) - 1


def test_a_text_with_other_line_separators_comes_back_whole(tmp_path):
    odd = "a\u2028b\x85c\x0bd"
    write_jsonl(tmp_path / "r.jsonl", [ProofRecord(odd, odd, 1.0)])
    assert read_jsonl(tmp_path / "r.jsonl", ProofRecord) == [ProofRecord(odd, odd, 1.0)]
