"""Samples for the report: what is wrong with them, which are kept, what judges said of them."""

from conftest import some_problems, some_proofs

from nanov2.distributed.ranks import Ranks
from nanov2.domains.order.domain import OrderTruth
from nanov2.method.figures import Bench, shown_judge, shown_meta
from nanov2.method.judges import Judgement
from nanov2.method.samples import CUT, failures, pick
from nanov2.records import ProblemRecord, ProofRecord
from nanov2.run.config import load_config


def test_failures_of_each_kind_are_picked_however_rare_they_are():
    usual = [{"problem": str(i), "critique": "c", "score": 1.0, "truth": 1.0} for i in range(300)]
    rare = [
        {"problem": "missed", "critique": "c", "score": 1.0, "truth": 0.5},
        {"problem": "invented", "critique": "c", "score": 0.0, "truth": 1.0, "invented": 1},
        {"problem": "cut", "critique": "half a", "score": None, "truth": 0.0, "cut": "critique"},
        {"problem": "fooled", "proof": "p", "truth": 0.0, "reward": 1.0},
    ]
    kept = [s["problem"] for s in pick([*usual, *rare], 8)]
    assert len(kept) == 8 and {"missed", "invented", "cut", "fooled"} <= set(kept)
    assert len(pick(usual, 400)) == 300 and pick([], 5) == []
    mixed = [{"proof": "p", "truth": t} for t in (0.0, 0.5, 1.0) for _ in range(9)]
    assert {s["truth"] for s in pick(mixed, 3)} == {0.0, 0.5, 1.0}  # right and wrong ones


def test_what_was_cut_off_keeps_its_text(tokenizer, prompts, model):
    config = load_config("configs/smoke.toml", ["--generator.max_tokens=3", "--verifier.max_tokens=5"])
    bench = Bench.of(prompts, OrderTruth(), config, Ranks())
    problems = [ProblemRecord(p.text, p.kind) for p in some_problems(6)]
    _, shown = bench.generator(model, problems, "held-out", samples=1)
    cut = [s for s in shown if s.get("cut") == "proof"]
    assert cut and all(s["proof"] != CUT and "cut_off" in failures(s) for s in cut)
    proofs = [ProofRecord(p.text, y, 1.0) for p, y in some_proofs(6)]
    _, shown = bench.verifier(model, proofs, "held-out")
    assert any(s.get("cut") == "critique" and s["critique"] != CUT for s in shown)
    assert all(s["score"] is None for s in shown if s.get("cut"))  # half a text has no verdict
    _, shown = bench.selfverify(model, problems, "held-out", samples=1)
    assert all(text for s in shown for _, text in s["turns"])


def test_a_sample_shows_the_judges_lowest_critique_and_the_gates_look():
    judged = Judgement(0.5, ("it is fine", None, "a gap"), (1.0, None, 0.0))
    assert shown_judge(judged) == {"reward": 0.5, "judge_critique": "a gap", "judge_score": 0.0}
    assert shown_judge(None) == {} and shown_judge(Judgement(float("nan"), (None,), (None,))) == {
        "reward": None
    }
    assert shown_judge(Judgement(0.0, (), ())) == {"reward": 0.0}  # no proof: the judge was not asked
    assert shown_meta(Judgement(1.0, ("real",), (1.0,))) == {"judge_meta": "real", "judge_meta_quality": 1.0}
    assert shown_meta(None) == {}
