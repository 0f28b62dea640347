"""The sampler against the trainer: same log-probs, same weights, ids in and ids out."""

import dataclasses

import pytest
import torch
from conftest import small_model, some_problems

from nanov2.method.tasks import SelfVerifyTask
from nanov2.model.packing import Completion, collate, make_packs, micro_batches
from nanov2.model.rollout import Sampling
from nanov2.model.sampler import sample
from nanov2.rl.grpo import batch_logprobs


def rollouts_of(model, tokenizer, prompts, n=3, temperature=1.0, turns=3, count=5, max_tokens=12):
    questions = [prompts.prove(p.text) for p in some_problems(count)]
    how = Sampling(temperature, max_tokens)

    def next_turn(rollout):
        return [tokenizer.task["verify" if len(rollout.turns) % 2 else "prove"]]

    return questions, sample(model, tokenizer, questions, n, how, 7, next_turn, turns)


def packs_of(questions, rollouts, max_tokens=512):
    packs = []
    for i, question in enumerate(questions):
        rows = [Completion(r.ids, r.sampled, j) for j, r in enumerate(rollouts) if r.group == i]
        packs += make_packs(question, rows, max_tokens)
    return packs


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("embed_conv", [0, 3])
@torch.no_grad()
def test_C7_C4_sampler_logprobs_equal_the_trainers(tokenizer, prompts, temperature, embed_conv):
    model = small_model(tokenizer, embed_conv=embed_conv)
    questions, rollouts = rollouts_of(model, tokenizer, prompts, temperature=temperature)
    for batch_packs in micro_batches(packs_of(questions, rollouts), 400):
        batch = collate(batch_packs)
        logp = batch_logprobs(model, batch, temperature)
        sampled = torch.tensor([x for r in batch.rows.tolist() for x in rollouts[r].logprobs])
        assert torch.allclose(logp[batch.counted], sampled[batch.counted], atol=2e-5)


def test_C7_a_shared_prompt_gives_the_gradients_of_separate_rows(tokenizer, prompts, model):
    questions, rollouts = rollouts_of(model, tokenizer, prompts)

    def gradients(packs, micro):
        model.zero_grad()
        for part in micro_batches(packs, micro):
            batch = collate(part)
            logp = batch_logprobs(model, batch, 1.0)
            weights = torch.cat(
                [torch.full((int(n),), 1.0 + r) for r, n in zip(batch.rows, batch.offsets.diff())]
            )
            (logp * weights * batch.counted).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    shared = gradients(packs_of(questions, rollouts), 4096)
    separate = gradients(
        [
            p
            for q, r in ((questions[r.group], r) for r in rollouts)
            for p in make_packs(q, [Completion(r.ids, r.sampled, rollouts.index(r))], 1)
        ],
        1,
    )
    assert torch.allclose(shared, separate, rtol=1e-3, atol=1e-4 * shared.abs().max())


def test_C8_the_sampled_end_token_is_counted(tokenizer, prompts, model):
    _, rollouts = rollouts_of(model, tokenizer, prompts, turns=1, count=20, max_tokens=30)
    ended = [r for r in rollouts if not r.truncated]
    assert ended
    for r in ended:
        assert r.ids[-1] == tokenizer.end and r.sampled[-1]


def test_C15_turns_are_joined_as_ids_with_one_bos(tokenizer, prompts, model):
    questions, rollouts = rollouts_of(model, tokenizer, prompts, count=20, max_tokens=40)
    assert any(len(r.turns) == 3 for r in rollouts)
    for r in rollouts:
        assert (questions[r.group] + r.ids).count(tokenizer.bos) == 1 + sum(
            t.count(tokenizer.bos)
            for t in r.turns  # an untrained model may sample one itself
        )
        given = [i for i, sampled in zip(r.ids, r.sampled) if not sampled]
        assert given == [tokenizer.task["verify"], tokenizer.task["prove"]][: len(given)]
        rebuilt = []
        for t, turn in enumerate(r.turns):
            rebuilt += ([given[t - 1]] if t else []) + turn
            rebuilt += [] if r.truncated and t == len(r.turns) - 1 else [tokenizer.end]
        assert rebuilt == r.ids


def test_C15_text_and_ids_round_trip(tokenizer, prompts):
    for problem in some_problems(50):
        assert tokenizer.decode(tokenizer.encode(problem.text)) == problem.text


def test_control_tokens_in_a_text_are_text(tokenizer):
    for text in ("<end>", "a <verify> b", "<bos><pad>", "<prove>"):
        assert tokenizer.control.isdisjoint(tokenizer.encode(text))


def test_C16_after_a_step_the_sampler_uses_the_new_weights(tokenizer, prompts, model):
    _, before = rollouts_of(model, tokenizer, prompts)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    questions, after = rollouts_of(model, tokenizer, prompts)
    assert [r.ids for r in before] != [r.ids for r in after]
    batch = collate(packs_of(questions, after))
    sampled = torch.tensor([x for r in batch.rows.tolist() for x in after[r].logprobs])
    with torch.no_grad():
        logp = batch_logprobs(model, batch, 1.0)
    assert torch.allclose(logp[batch.counted], sampled[batch.counted], atol=5e-5)


def test_a_rows_sample_does_not_depend_on_its_neighbours(tokenizer, prompts, model):
    questions = [prompts.prove(p.text) for p in some_problems(6)]
    how, seeds = Sampling(1.0, 20), list(range(6))
    together = sample(model, tokenizer, questions, 2, how, seeds)
    alone = [r for q, s in zip(questions, seeds) for r in sample(model, tokenizer, [q], 2, how, [s])]
    split = sample(model, tokenizer, questions, 2, dataclasses.replace(how, batch_rows=4), seeds)
    assert [r.ids for r in together] == [r.ids for r in alone] == [r.ids for r in split]


def test_greedy_takes_the_likeliest_and_limits_are_counted(tokenizer, prompts, model):
    questions = [prompts.prove(p.text) for p in some_problems(4)]
    a = sample(model, tokenizer, questions, 2, Sampling(0.0, 5), 1)
    b = sample(model, tokenizer, questions, 2, Sampling(0.0, 5), 2)
    assert [r.ids for r in a] == [r.ids for r in b]
    assert all(len(r.ids) <= 5 and r.truncated == (r.ids[-1] != tokenizer.end) for r in a)
    assert all(prompts.answer(r) is None for r in a if r.truncated)


def test_a_log_prob_is_never_positive(tokenizer, prompts, model):
    _, rollouts = rollouts_of(model, tokenizer, prompts)
    assert all(x <= 0 for r in rollouts for x in r.logprobs)


def test_a_turn_that_opens_with_more_than_announced_is_an_error(tokenizer, prompts, model):
    questions = [prompts.prove(some_problems(1)[0].text)]
    with pytest.raises(ValueError, match="opens with 2 tokens, max_given is 1"):
        sample(model, tokenizer, questions, 50, Sampling(1.0, 30), 0, lambda r: [1, 2], 2)


def test_no_turn_begins_once_the_budget_is_spent(tokenizer, prompts, model):
    task = SelfVerifyTask(prompts, None, max_turns=5, budget=10)
    rollouts = sample(
        model, tokenizer, [prompts.prove("a")] * 20, 4, Sampling(1.0, 30), 0, task.next_turn, task.max_turns
    )
    assert any(len(r.turns) > 1 for r in rollouts)
    for r in rollouts:
        before = (
            len(r.ids) - len(r.turns[-1]) - 1 - (not r.truncated)
        )  # what was there when the last turn began
        assert len(r.turns) == 1 or before < 10
