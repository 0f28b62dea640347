"""What tasks give for rollouts, and for none."""

import pytest
from conftest import small_model, some_problems, some_proofs

from nanov2.method.judges import OwnScores, meta_judge, verifier_judge
from nanov2.method.tasks import GeneratorTask, SelfVerifyTask, VerifierTask
from nanov2.model.rollout import Sampling
from nanov2.model.sampler import sample
from nanov2.records import ProblemRecord, ProofRecord


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
