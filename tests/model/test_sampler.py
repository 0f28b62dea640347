"""The sampler against the trainer: same log-probs, same weights, ids in and ids out."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import small_model, some_problems
from torch.utils._python_dispatch import TorchDispatchMode

from nanov2.method.tasks import SelfVerifyTask
from nanov2.model.cache import BLOCK, Cache
from nanov2.model.decoder import Model, ModelConfig
from nanov2.model.deepseek import LatentConfig
from nanov2.model.layers import RopeScaling, rotary
from nanov2.model.packing import Completion, Pack, collate, make_packs, micro_batches, share_prefix
from nanov2.model.rollout import Sampling
from nanov2.model.sampler import draw, logits, sample
from nanov2.rl import trainer
from nanov2.rl.grpo import batch_logprobs
from nanov2.rl.trainer import supervised_loss

LATENT = LatentConfig(kv_lora_rank=8, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=10, q_lora_rank=12)


def rollouts_of(model, tokenizer, prompts, n=3, temperature=1.0, turns=3, count=5, max_tokens=12):
    questions = [prompts.ids(prompts.prove(p.text)) for p in some_problems(count)]
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
    questions = [prompts.ids(prompts.prove(p.text)) for p in some_problems(6)]
    how, seeds = Sampling(1.0, 20), list(range(6))
    together = sample(model, tokenizer, questions, 2, how, seeds)
    alone = [r for q, s in zip(questions, seeds) for r in sample(model, tokenizer, [q], 2, how, [s])]
    split = sample(model, tokenizer, questions, 2, dataclasses.replace(how, batch_rows=4), seeds)
    assert [r.ids for r in together] == [r.ids for r in alone] == [r.ids for r in split]


@pytest.mark.parametrize("kind", [{"embed_conv": 3}, {"embed_conv": 0}, {"latent": LATENT, "n_kv_heads": 4}])
@torch.no_grad()
def test_C7_what_all_prompts_begin_with_is_computed_once(tokenizer, prompts, kind, monkeypatch):
    model, rubric = small_model(tokenizer, **kind), [(7 * i) % tokenizer.vocab_size for i in range(40)]
    questions = [rubric + prompts.ids(prompts.prove(p.text)) for p in some_problems(6)]
    questions.append(rubric)  # which nothing follows
    how, seeds, computed = Sampling(1.0, 40, batch_rows=4), list(range(7)), []
    embed = Model.embed
    monkeypatch.setattr(Model, "embed", lambda m, ids, h: computed.append(ids.shape) or embed(m, ids, h))
    together = sample(model, tokenizer, questions, 2, how, seeds)
    assert computed[0] == (1, 39) and max(n for _, n in computed[1:]) == max(map(len, questions)) - 39
    alone = [r for q, s in zip(questions, seeds) for r in sample(model, tokenizer, [q], 2, how, [s])]
    assert [r.ids for r in together] == [r.ids for r in alone]
    for batch_packs in micro_batches(packs_of(questions, together), 400):
        batch = collate(batch_packs)
        sampled = torch.tensor([x for r in batch.rows.tolist() for x in together[r].logprobs])
        assert torch.allclose(batch_logprobs(model, batch, 1.0), sampled, atol=2e-5)


def test_C7_documents_that_begin_alike_have_the_gradients_of_separate_ones(
    tokenizer, prompts, model, monkeypatch
):
    def document(rubric, i, p):
        question = prompts.ids(prompts.prove(p.text))
        return Pack(rubric + question, [Completion(question[: 3 + i], [True] * (2 + i) + [False])])

    rubrics = [[(k * i) % tokenizer.vocab_size for i in range(40)] for k in (7, 11)]
    packs = [document(rubrics[i % 2], i, p) for i, p in enumerate(some_problems(5))]
    packs += [document([], 5, some_problems(6)[5]), Pack(rubrics[0], [Completion([4, 5], [True, True])])]
    shared = share_prefix(packs, 512)
    assert len(shared) == 3 and sum(map(len, shared)) <= sum(map(len, packs)) - 40 * 4
    losses, gradients = [], []
    for some in (shared, packs):
        model.zero_grad()
        monkeypatch.setattr(trainer, "share_prefix", lambda *_, some=some: some)
        losses.append(supervised_loss(model, packs, 7.0, backward=True))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert torch.allclose(*gradients, atol=1e-5)


def test_greedy_takes_the_likeliest_and_limits_are_counted(tokenizer, prompts, model):
    questions = [prompts.ids(prompts.prove(p.text)) for p in some_problems(4)]
    a = sample(model, tokenizer, questions, 2, Sampling(0.0, 5), 1)
    b = sample(model, tokenizer, questions, 2, Sampling(0.0, 5), 2)
    assert [r.ids for r in a] == [r.ids for r in b]
    assert all(len(r.ids) <= 5 and r.truncated == (r.ids[-1] != tokenizer.end) for r in a)
    assert all(prompts.answer(r) is None for r in a if r.truncated)


def test_a_log_prob_is_never_positive(tokenizer, prompts, model):
    _, rollouts = rollouts_of(model, tokenizer, prompts)
    assert all(x <= 0 for r in rollouts for x in r.logprobs)


def test_a_turn_that_opens_with_more_than_announced_is_an_error(tokenizer, prompts, model):
    questions = [prompts.ids(prompts.prove(some_problems(1)[0].text))]
    with pytest.raises(ValueError, match="opens with 2 tokens, max_given is 1"):
        sample(model, tokenizer, questions, 50, Sampling(1.0, 30), 0, lambda r: [1, 2], 2)


def test_no_turn_begins_once_the_budget_is_spent(tokenizer, prompts, model):
    task = SelfVerifyTask(prompts, None, max_turns=5, budget=10)
    rollouts = sample(
        model,
        tokenizer,
        [prompts.ids(prompts.prove("a"))] * 20,
        20,
        Sampling(1.0, 30),
        0,
        task.next_turn,
        task.max_turns,
    )
    assert any(len(r.turns) > 1 for r in rollouts)
    for r in rollouts:
        before = (
            len(r.ids) - len(r.turns[-1]) - 1 - (not r.truncated)
        )  # what was there when the last turn began
        assert len(r.turns) == 1 or before < 10


def test_C29_a_uniform_number_of_zero_draws_a_token_of_positive_probability():
    for size in (7, 5000):
        z = torch.full((2, size), -1e9)
        z[0, 3], z[1, size - 1] = 0.0, 0.0
        tokens, _ = draw(z, torch.zeros(2, dtype=torch.float64), 1.0)
        assert tokens.tolist() == [3, size - 1]
        nearly_one = torch.full((2,), 1 - 2**-53, dtype=torch.float64)
        assert draw(z, nearly_one, 1.0)[0].tolist() == [3, size - 1]


@pytest.mark.parametrize("size", [1000, 151_936])
def test_C29_every_token_of_the_vocabulary_can_be_drawn(size):
    """Each token is drawn at the middle of its share of the line, which is as wide as its probability."""
    z = torch.randn(size, generator=torch.Generator().manual_seed(0)) * 2
    probs = torch.log_softmax(z, 0).exp().double()
    middle = (probs.cumsum(0) - probs / 2) / probs.sum()
    some = torch.arange(0, size, max(1, size // 300))
    for part in some.split(50):
        tokens, logprobs = draw(z.expand(len(part), -1), middle[part], 1.0)
        assert torch.equal(tokens, part)
        assert torch.allclose(logprobs, torch.log_softmax(z, 0)[part])
    tail = torch.argsort(z)[:50]
    assert torch.equal(draw(z.expand(50, -1), middle[tail], 1.0)[0], tail)


def test_draws_have_the_frequencies_of_the_distribution():
    z = torch.tensor([[0.0, 1.0, -2.0, 0.5, -1e9]])
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens, _ = draw(z.expand(40_000, -1), uniform, 0.7)
    found = torch.bincount(tokens, minlength=5) / 40_000
    assert torch.allclose(found, torch.softmax(z[0] / 0.7, 0), atol=0.01) and found[4] == 0


def test_C23_the_samplers_logits_are_summed_in_fp32_at_any_dtype():
    torch.manual_seed(0)
    hidden, weight = torch.randn(4, 256).bfloat16(), torch.randn(50, 256).bfloat16()
    exact = hidden.double() @ weight.double().T
    assert logits(hidden, weight).dtype == torch.float32
    assert torch.allclose(logits(hidden, weight).double(), exact, atol=1e-4)


@torch.no_grad()
def test_C23_attention_scores_of_a_half_precision_cache_are_summed_in_fp32():
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=8, dim=256, n_layers=1, n_heads=2, n_kv_heads=1)
    cache = Cache(config, 1, 1, 3, torch.zeros(1, dtype=torch.bfloat16))
    q, k, v = (torch.randn(1, h, 3, 128).bfloat16() for h in (2, 1, 1))
    slot = torch.tensor([0])
    cache.filling(slot, 3)(0)(q, k, v)
    cache.prompt_lengths[slot] = 3
    cache.seat(slot, slot, cache.recent.clone())
    cache.arrange()
    cache.begin()
    new = [x[:, :, :1] * 3 for x in (q, k, v)]  # large scores, which rounding would move by a lot
    found = cache.attend(0, *new).float()
    keys, values = (torch.cat([x, n], dim=2).float() for x, n in ((k, new[1]), (v, new[2])))
    exact = F.scaled_dot_product_attention(new[0].float(), keys, values, enable_gqa=True)
    assert (found - exact).abs().max() < 0.02 * exact.abs().max()


class Ends:
    """A tokenizer of which two tokens end a turn."""

    ends = (3, 5)


def test_C30_every_end_of_text_id_ends_a_turn(tokenizer, model):
    rollouts = sample(model, Ends(), [[1, 2]], 60, Sampling(1.0, 60), 0)
    ended = [r for r in rollouts if not r.truncated]
    assert {r.ids[-1] for r in ended} == {3, 5}
    assert all(not {3, 5} & set(r.turns[0]) and len(r.turns[0]) == len(r.ids) - 1 for r in ended)


def test_C30_prompt_and_answer_never_pass_the_context(tokenizer, prompts):
    model = small_model(tokenizer, context=20)
    questions = [[tokenizer.bos] * n for n in (4, 19, 20, 25)]
    rollouts = sample(model, tokenizer, questions, 6, Sampling(1.0, 64), 0, lambda r: [7], 4)
    assert all(len(r.prompt) + len(r.ids) <= 20 for r in rollouts if len(r.prompt) <= 20)
    assert any(len(r.prompt) + len(r.ids) == 20 and r.truncated for r in rollouts[:6])
    assert all(len(r.ids) == 1 and (r.truncated or r.ids == [tokenizer.end]) for r in rollouts[6:12])
    for r in rollouts[12:]:  # a prompt that fills the context has no answer, which is no error
        assert r.ids == [] and r.truncated and r.turns == [[]]


class Count(TorchDispatchMode):
    """Counts operators that compute something: all but slices."""

    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        self.n += function is not torch.ops.aten.slice.Tensor
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def test_a_decode_steps_operators_do_not_grow_with_the_completion(tokenizer, model):
    rows = torch.arange(2)
    cache = Cache(model.config, 2, 1, 4, model.output_weight)
    _, recent = model.prefill([[1, 2, 3, 4]], cache, torch.tensor([0]))
    cache.seat(rows, torch.zeros(2, dtype=torch.long), recent.expand(2, -1))
    cache.arrange()
    counts = {}

    def decode(step):
        with Count() as count:
            model.step(torch.tensor([5, 6]), cache, rows)
        counts[step] = count.n

    for step in range(2049):
        decode(step)
    for room in (4096, 8192):  # on to where the buffer doubles again
        cache.lengths.fill_(room - 2)
        cache.longest = room - 2
        for step in range(room - 2, room + 2):
            decode(step)
    with Count() as table:  # of rotary positions, as long as the buffer
        cache._turns()
    doublings = [step for step, n in counts.items() if n != counts[16]]
    assert doublings == [32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]
    assert all(counts[step] == counts[16] + 1 + table.n for step in doublings)


SCALED = RopeScaling(8.0, 1.0, 4.0, 64)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "kind", [{}, {"qk_norm": True, "rope_scaling": SCALED}, {"latent": LATENT, "n_kv_heads": 4}]
)
def test_a_step_without_gradients_has_the_bits_of_one_with_them(tokenizer, kind, precision):
    model = small_model(tokenizer, **kind)
    model.set_precision(precision)

    def decode(mode):
        with mode:
            return list(hidden_states(model))

    assert all(map(torch.equal, decode(torch.no_grad()), decode(torch.enable_grad())))


def hidden_states(model):
    """Of two prompts that begin alike and of three rows, until their buffer has doubled."""
    cache, rows = Cache(model.config, 3, 2, 6, model.output_weight), torch.arange(3)
    model.prefill_common([1, 2, 3], cache)
    hidden, recent = model.prefill([[1, 2, 3, 4, 5], [1, 2, 3, 6, 7, 8]], cache, torch.arange(2))
    yield hidden
    slots = torch.tensor([0, 1, 1])
    cache.seat(rows, slots, recent[slots])
    cache.arrange()
    for step in range(BLOCK + 2):
        positions = cache.begin()
        assert all(map(torch.equal, cache.rotary(positions), rotary(positions[:, None], model.config)))
        yield model.step(torch.tensor([step, 5, 6]), cache, rows[: 3 - step % 2])
