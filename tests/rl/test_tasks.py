"""What tasks give for rollouts, and for none."""

import math
import types

import pytest
from conftest import small_model, some_problems, some_proofs

from nanov2.domains.language import MV_END, MV_START, V_END, V_START, Language
from nanov2.domains.order.domain import OrderTruth
from nanov2.domains.order.world import examine, parse_proof, write_critique, write_proof
from nanov2.errors import InputError
from nanov2.method import judges
from nanov2.method.judges import OwnScores, meta_judge, verifier_judge
from nanov2.method.tasks import GeneratorTask, SelfVerifyTask, VerifierTask
from nanov2.model.rollout import Rollout, Sampling
from nanov2.model.sampler import sample
from nanov2.records import LEVELS, CritiqueRecord, ProblemRecord, ProofRecord
from nanov2.run.config import load_config
from nanov2.run.start import _check_credit


def tasks(tokenizer, prompts):
    model = small_model(tokenizer, seed=1)
    verifier, meta = verifier_judge(model, prompts, max_tokens=6), meta_judge(model, prompts, max_tokens=6)
    problems = [ProblemRecord(p.text) for p in some_problems(3)]
    proofs = [ProofRecord(p.text, proof, 1.0) for p, proof in some_proofs(3)]
    return {
        "verifier": (VerifierTask(prompts), proofs),
        "verifier2": (VerifierTask(prompts, meta), proofs),
        "generator": (GeneratorTask(prompts, verifier), problems),
        "selfverify": (SelfVerifyTask(prompts, verifier, 3), problems),
        "alpha_beta": (SelfVerifyTask(prompts, verifier, 3, meta, (0.76, 0.24)), problems),
    }


@pytest.mark.parametrize("name", ["verifier", "verifier2", "generator", "selfverify", "alpha_beta"])
def test_C22_a_task_rewards_no_rollouts_with_the_figures_of_some(tokenizer, prompts, model, name):
    task, items = tasks(tokenizer, prompts)[name]
    questions = [task.prompt(item) for item in items]
    rollouts = sample(model, tokenizer, questions, 1, Sampling(1.0, 8), 0, task.next_turn, task.max_turns)
    some, none = task.rewards(items, rollouts), task.rewards([], [])
    assert len(some.reward) == 3 and none.reward == []
    assert set(none.log) == set(some.log) and all(values == [] for values in none.log.values())


def test_the_generators_own_score_is_asked_of_so_many_proofs_a_group_and_is_in_no_reward(tokenizer, prompts):
    from test_correctness import FixedJudge, right, rollout

    problems = some_problems(2)
    items, rollouts = [], []
    for g, problem in enumerate(problems):
        for _ in range(3):
            items.append(ProblemRecord(problem.text))
            rollouts.append(rollout(tokenizer, [right(problem)[0]]))
            rollouts[-1].group = g

    asked = []

    def own(questions):
        asked.extend(questions)
        return [0.25] * len(questions)

    found = GeneratorTask(prompts, FixedJudge(1.0), None, own, 2).rewards(items, rollouts)
    assert len(asked) == 4 and [x == x for x in found.log["self_gap"]] == [True, True, False] * 2
    assert found.log["self_gap"][0] == -0.75 and found.reward == [1.0] * 6
    assert GeneratorTask(prompts, FixedJudge(1.0)).rewards(items, rollouts).reward == found.reward


def test_own_scores_leave_the_model_as_it_trains(tokenizer, prompts):
    model = small_model(tokenizer).train()
    questions = [prompts.verify(p.text, proof) for p, proof in some_proofs(2)]
    assert len(OwnScores(model, prompts, 6)(questions)) == 2
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_own_scores_are_expected_over_the_score_tokens_where_the_critique_has_its_score(
    tokenizer, prompts, model, monkeypatch
):
    (problem, proof), *_ = some_proofs(1)
    question = prompts.verify(problem.text, proof)
    ids = tokenizer.encode(write_critique(examine(problem, parse_proof(proof))))
    assert prompts.score_tokens[ids[-1]] in LEVELS and len(prompts.score_tokens) == 3
    begun = [*prompts.ids(question), *ids[:-1]]

    def chance_of(token):  # by the sampler's own log-probs: the drawn token's, at a temperature of 1
        drawn = sample(model, tokenizer, [begun], 2000, Sampling(1.0, 1), 0)
        return next((math.exp(r.logprobs[0]) for r in drawn if r.ids[0] == token), None)

    chances = {score: chance_of(token) for token, score in prompts.score_tokens.items()}
    assert None not in chances.values()
    expected = sum(s * p for s, p in chances.items()) / sum(chances.values())
    answer = Rollout(prompts.ids(question), 0, [*ids, tokenizer.end], turns=[ids])
    cut = Rollout(prompts.ids(question), 0, ids[:2], turns=[ids[:2]], truncated=True)
    monkeypatch.setattr(judges, "sample", lambda *args: [answer, cut])
    found = OwnScores(model, prompts, 60)([question, question])
    assert found[0] == pytest.approx(expected, abs=1e-5) and math.isnan(found[1])
    monkeypatch.setitem(vars(prompts), "score_tokens", {})  # as of a tokenizer that takes several for one
    assert OwnScores(model, prompts, 60)([question])[0] == examine(problem, parse_proof(proof)).score


def test_a_verifiers_full_marks_that_are_wrong_are_counted_of_proofs_alone(prompts):
    problem, proof = some_proofs(1)[0]
    says = {s: f"{V_START}\n{V_END} \\boxed{{{s:g}}}" for s in (0.0, 0.5, 1.0)}
    proofs = [ProofRecord(problem.text, proof, s) for s in (1.0, 0.5, 0.0, 0.0)]
    of_critique = CritiqueRecord(problem.text, proof, says[0.0], quality=0.0, score=0.0)
    answers = [says[1.0], says[1.0], says[0.5], "no score", MV_START + f"\n{MV_END} \\boxed{{1}}"]
    rollouts = [critique_rollout(prompts, text) for text in answers[:3]]
    rollouts += [Rollout([], 0, [], [], [], [[]], truncated=True), critique_rollout(prompts, answers[4])]
    found = VerifierTask(prompts).rewards([*proofs, of_critique], rollouts)
    accepts = found.log["false_accept"]
    assert accepts[:2] == [0.0, 1.0] and all(math.isnan(x) for x in accepts[2:])
    assert found.reward[:3] == [1.0, 0.5, 0.5]  # as before


def critique_rollout(prompts, text):
    ids = [*prompts.tokenizer.encode(text), prompts.tokenizer.end]
    return Rollout([], 0, ids, [True] * len(ids), [0.0] * len(ids), [ids[:-1]])


def test_each_finding_of_a_critique_has_the_credit_of_its_own_tokens(prompts):
    problem = some_problems(1)[0]
    truth, proof = OrderTruth(), write_proof(problem.solution)
    exact = examine(problem, problem.solution)
    wrong = exact._replace(findings=(exact.findings[0]._replace(verdict="gap"), *exact.findings[1:]))
    twice = exact._replace(findings=(exact.findings[0], *exact.findings), strong=False)
    item = ProofRecord(problem.text, proof, 1.0)
    known = {(item.problem, item.proof): truth.findings(item.problem, item.proof)}
    rollouts = [critique_rollout(prompts, write_critique(c)) for c in (exact, wrong, twice)]
    task = VerifierTask(prompts, findings=known)
    found = task.rewards([item] * 3, [*rollouts])
    n = len(exact.findings) + 2  # and the ends and the strength of the chain
    worth = [[p.worth for p in ps] for ps in found.parts]
    assert worth == [[1] * n, [0] + [1] * (n - 1), [1, 0] + [1] * (n - 2) + [0]]
    assert found.reward == VerifierTask(prompts).rewards([item] * 3, rollouts).reward
    for rollout, parts in zip(rollouts, found.parts):
        texts = [prompts.tokenizer.decode(rollout.ids[p.start : p.end]) for p in parts]
        lines = prompts.answer(rollout).split("\n")
        assert [t.rstrip("\n") for t in texts] == lines[1:-1]


def test_a_critique_without_form_and_a_meta_critique_have_no_findings(prompts):
    problem = some_problems(1)[0]
    proof, text = write_proof(problem.solution), write_critique(examine(problem, problem.solution))
    items = [ProofRecord(problem.text, proof, 1.0), CritiqueRecord(problem.text, proof, text, 1.0)]
    known = {(problem.text, proof): OrderTruth().findings(problem.text, proof)}
    rollouts = [critique_rollout(prompts, text.rpartition("\n")[0]), critique_rollout(prompts, text)]
    found = VerifierTask(prompts, findings=known).rewards(items, rollouts)
    assert found.parts == [[], []] and all(math.isnan(x) for x in found.log["finding"])


@pytest.mark.parametrize(
    "settings", [["--expert=page"], ["--domain=natural", "--expert=grades"], ["--pretrained.folder=x"]]
)
def test_credit_per_finding_is_refused_where_nobody_can_name_findings(settings):
    config = load_config("configs/smoke.toml", ["--verifier.credit=finding", *settings])
    domain = types.SimpleNamespace(truth=None if "--domain=natural" in settings else OrderTruth())
    with pytest.raises(InputError, match="verifier.credit"):
        _check_credit(config, domain)


def test_credit_per_finding_is_refused_in_a_language_that_names_none(tokenizer):
    with pytest.raises(InputError, match="names no findings"):
        VerifierTask(Language(tokenizer), findings={})


@pytest.mark.parametrize(
    "settings", [["--grpo.loss_type=gspo"], ["--grpo.ratio=sequence"], ["--grpo.off_policy_delta=0.5"]]
)
def test_credit_per_finding_is_refused_where_a_loss_takes_one_advantage_a_critique(settings):
    with pytest.raises(InputError, match="loss_type"):
        load_config(None, ["--verifier.credit=finding", *settings])
