"""What tasks give for rollouts, and for none."""

import pytest
from conftest import small_model, some_problems, some_proofs

from nanov2.method.judges import meta_judge, verifier_judge
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
