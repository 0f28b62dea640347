"""Rollout engines, against a server that speaks as vLLM and SGLang do and fails in the ways that they may."""

import dataclasses
import shlex
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import ProveTask, small_model, some_problems, some_proofs
from scripted_engine import ScriptedEngine

from nanov2.distributed.ranks import Ranks
from nanov2.errors import InputError
from nanov2.hub import hf
from nanov2.hub.engine import Engine, RolloutConfig, open_engine
from nanov2.hub.local import OwnAuthor, TokenAuthor
from nanov2.hub.wire import Broken, Wire
from nanov2.method.judges import Judge
from nanov2.model.packing import Completion, collate, make_packs
from nanov2.model.rollout import Sampling, Served
from nanov2.model.sampler import sample
from nanov2.records import ProblemRecord
from nanov2.rl.config import GRPOConfig
from nanov2.rl.grpo import batch_logprobs
from nanov2.rl.logs import read_rows
from nanov2.rl.task import Part, Rewards
from nanov2.rl.trainer import Trainee, train_grpo

HOW = Sampling(1.0, 12)
PATIENT = {"timeout": 300.0, "patience": 300.0, "concurrency": 4}  # for many requests to one busy core


@pytest.fixture
def serve(tmp_path):
    """Starts scripted servers and makes engines of them; all of it ends with the test."""
    made = []

    def start(engine="vllm", servers=1, tells=True, **settings):
        found = [ScriptedEngine(tells=tells) for _ in range(servers)]
        for server in found:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        settings = {
            "timeout": 5.0,
            "patience": 3.0,
            "dtype": "fp32",
            "folder": str(tmp_path),
            "seeded": True,
        } | settings
        config = RolloutConfig(engine, tuple(s.url for s in found), **settings)
        made.extend(found)
        made.append(Engine(config, config.urls, Ranks()))
        return made[-1], *found

    yield start
    for one in made:
        if isinstance(one, Engine):
            one.close()
        else:
            one.shutdown()
            one.server_close()


@pytest.fixture
def asked(prompts):
    return [prompts.ids(prompts.prove(p.text)) for p in some_problems(5)]


def through(engine, model, tokenizer, asked, n=3, how=HOW, seed=7, **more):
    model.engine = engine
    engine.load(model)
    try:
        return sample(model, tokenizer, asked, n, how, seed, **more)
    finally:
        model.engine = None


@pytest.fixture
def many(prompts):
    return [prompts.ids(prompts.prove(p.text)) for p in some_problems(64)]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_greedy_tokens_and_log_probs_are_those_of_the_own_sampler(serve, model, tokenizer, many, engine):
    found = through(serve(engine, **PATIENT)[0], model, tokenizer, many, 1, Sampling(0.0, 12))
    own = sample(model, tokenizer, many, 1, Sampling(0.0, 12), 7)
    assert [r.ids for r in found] == [r.ids for r in own]
    for a, b in zip(found, own):
        assert torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-5)
        assert (a.turns, a.truncated, a.sampled, a.group) == (b.turns, b.truncated, b.sampled, b.group)
        assert a.version and not b.version


@pytest.mark.parametrize("precision, off", [("fp32", 1e-3), ("bf16", 5e-2)])
def test_sampled_log_probs_are_the_trainers_and_importance_weights_have_a_mean_of_1(
    serve, model, tokenizer, many, precision, off
):
    """In bf16 the weights are rounded on the way, and the trainer rounds its products."""
    found = through(serve(dtype=precision, **PATIENT)[0], model, tokenizer, many, 2)
    model.set_precision(precision)
    each = [make_packs(many[r.group], [Completion(r.ids, r.sampled, i)], 1)[0] for i, r in enumerate(found)]
    batch = collate(each)
    with torch.no_grad():
        trained = batch_logprobs(model, batch, 1.0)
    difference = trained - torch.tensor([p for r in found for p in r.logprobs])
    assert len(found) == 128 and difference.abs().max() < off
    assert abs(float(difference.exp().mean()) - 1) < 0.01


def test_a_group_is_one_request_and_each_later_turn_one_of_its_own(serve, model, tokenizer, asked):
    engine, server = serve()
    how = dataclasses.replace(HOW, max_given=2)
    found = through(engine, model, tokenizer, asked[:2], 3, how, next_turn=lambda r: [5, 6], max_turns=2)
    asked_for = [(r["sampling_params"]["n"], r["token_ids"]) for r in server.requests]
    assert sorted(n for n, _ in asked_for) == [1] * sum(len(r.turns) == 2 for r in found) + [3, 3]
    for r in found:
        if len(r.turns) == 2:
            begun = len(r.turns[0]) + 1
            assert r.ids[begun : begun + 2] == [5, 6] and r.sampled[begun : begun + 2] == [False, False]
            assert (1, r.prompt + r.ids[: begun + 2]) in asked_for
            assert r.ids[begun + 2 :][: len(r.turns[1])] == r.turns[1]
        assert len(r.ids) == len(r.logprobs) == len(r.sampled)


def test_a_completion_never_passes_the_context_and_an_overlong_prompt_is_not_asked(serve, tokenizer, asked):
    model = small_model(tokenizer, context=len(asked[0]) + 4)
    engine, server = serve()
    long = asked[0] + [5] * 4
    found = through(engine, model, tokenizer, [asked[0], long], 2)
    assert all(len(r.prompt) + len(r.ids) <= model.config.context for r in found)
    assert [r.ids for r in found[2:]] == [[], []] and all(r.truncated for r in found[2:])
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", ["drop", "500", "429", "half", "html", "short"])
def test_what_can_pass_is_asked_again_and_the_samples_are_the_same(serve, model, tokenizer, asked, fault):
    engine, server = serve()
    whole = through(engine, model, tokenizer, asked)
    server.faults.extend([fault, "", fault])
    again = through(engine, model, tokenizer, asked)
    assert [r.ids for r in again] == [r.ids for r in whole]


def test_slow_bytes_end_at_the_deadline_and_are_asked_for_again(serve, model, tokenizer, asked):
    engine, server = serve(timeout=0.5)
    server.faults.append("drip")
    begin = time.monotonic()
    assert len(through(engine, model, tokenizer, asked[:2])) == 6
    assert time.monotonic() - begin < 5


def test_weights_that_are_taken_too_slowly_are_sent_again(serve, model, tokenizer, asked, monkeypatch):
    engine, server = serve(timeout=0.5)
    server.faults.append("drip")
    begin = time.monotonic()
    engine.load(model)
    assert time.monotonic() - begin < 5 and server.version == engine.version


@pytest.mark.parametrize("key", ["sk-secret\n", "sk\r\nsecret"])
def test_a_key_that_no_header_can_carry_is_refused_unprinted(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match="OPENAI_API_KEY holds a character") as e:
        Wire(1.0).get("http://127.0.0.1:9", "/health")
    assert "secret" not in str(e.value)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_an_answer_of_old_weights_is_refused_and_the_server_is_given_the_new_ones(
    serve, model, tokenizer, asked, engine
):
    engine, server = serve(engine)
    server.faults.append("stale")
    found = through(engine, model, tokenizer, asked[:1])
    assert {r.version for r in found} == {server.version}
    assert len(server.loads) == 2 and len(server.requests) == 2


def test_a_server_that_forgets_its_weights_is_given_them_again(serve, model, tokenizer, asked):
    engine, server = serve()
    want = through(engine, model, tokenizer, asked)
    other = small_model(tokenizer, seed=1)
    server.model, server.version = other, "default"  # as after a restart
    model.engine = engine
    assert [r.ids for r in sample(model, tokenizer, asked, 3, HOW, 7)] == [r.ids for r in want]
    model.engine = None


def test_a_server_that_answers_with_old_weights_for_ever_ends_the_run_in_one_line(
    serve, model, tokenizer, asked
):
    engine, server = serve(patience=0.5)
    server.faults.extend(["stale"] * 100)
    with pytest.raises(InputError, match="of an older step were refused"):
        through(engine, model, tokenizer, asked[:1])


def test_answers_without_a_version_are_refused(serve, model, tokenizer, asked):
    engine, _ = serve(tells=False)
    with pytest.raises(InputError, match="do not tell the version"):
        through(engine, model, tokenizer, asked[:1])


@pytest.mark.parametrize(
    "fault, says", [("400", "status 400"), ("few", "2 of 3 samples"), ("nan", "log-probs")]
)
def test_what_would_be_the_same_again_ends_the_run_at_once(serve, model, tokenizer, asked, fault, says):
    engine, server = serve(patience=100.0)
    server.faults.append(fault)
    begin = time.monotonic()
    with pytest.raises(InputError, match=says):
        through(engine, model, tokenizer, asked)
    assert time.monotonic() - begin < 5


def test_nothing_is_sampled_after_the_weights_have_changed(serve, model, tokenizer, asked):
    engine, server = serve()
    through(engine, model, tokenizer, asked[:1])
    engine.changed()
    model.engine = engine
    with pytest.raises(RuntimeError, match="changed since"):
        sample(model, tokenizer, asked[:1], 1, HOW, 7)


def test_several_servers_share_the_prompts_and_one_that_is_away_is_waited_for(serve, model, tokenizer, asked):
    engine, first, second = serve(servers=2)
    through(engine, model, tokenizer, asked)
    assert first.requests and second.requests and first.version == second.version
    second.faults.extend(["drop"] * 3)
    assert len(through(engine, model, tokenizer, asked)) == 15


def test_requests_go_out_together_up_to_the_limit(serve, model, tokenizer, asked):
    engine, server = serve(concurrency=3)
    server.faults.extend(["wait"] * 5)
    through(engine, model, tokenizer, asked)
    assert server.most == 3


def test_weights_are_sent_in_the_asked_precision_and_leave_nothing_behind(
    serve, model, tokenizer, asked, tmp_path
):
    engine, server = serve(dtype="bf16")
    found = through(engine, model, tokenizer, asked, 1, Sampling(0.0, 12))
    assert torch.equal(server.model.norm.weight, model.norm.weight.bfloat16().float())
    assert torch.equal(
        server.model.layers[0].mlp.up_proj.weight, model.layers[0].mlp.up_proj.weight.bfloat16()
    )
    rounded = small_model(tokenizer)
    rounded.load_state_dict({k: v.bfloat16().float() for k, v in model.state_dict().items()})
    assert [r.ids for r in found] == [
        r.ids for r in sample(rounded, tokenizer, asked, 1, Sampling(0.0, 12), 7)
    ]
    engine.close()
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_takes_no_weights_is_one_line(serve, model, tokenizer, asked, tmp_path):
    (tmp_path / "file").touch()
    engine, _ = serve(folder=str(tmp_path / "file"))
    with pytest.raises(InputError):
        engine.load(model)


def own_command():
    script = Path(__file__).parents[1] / "scripted_engine.py"
    return f"{shlex.quote(sys.executable)} {shlex.quote(str(script))}"


def started(tmp_path, **settings):
    settings = {"start": True, "command": own_command(), "dtype": "fp32", "patience": 60.0} | settings
    config = RolloutConfig("vllm", folder=str(tmp_path / "shm"), **settings)
    return open_engine(config, (), Ranks(), tmp_path, tmp_path / "engine.log")


def test_a_server_is_started_used_started_again_when_it_dies_and_stopped(
    tmp_path, monkeypatch, model, tokenizer, asked
):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    own = sample(model, tokenizer, asked, 1, Sampling(0.0, 12), 7)
    engine = started(tmp_path, options=f"--dies {tmp_path / 'died'}", concurrency=1)
    found = through(engine, model, tokenizer, asked, 1, Sampling(0.0, 12))
    assert [r.ids for r in found] == [r.ids for r in own]
    assert engine.server.restarts == 1 and (tmp_path / "died").exists()
    assert engine.server.url.startswith("http://127.0.0.1:")
    url = engine.server.url
    engine.close()
    with pytest.raises(Broken):
        Wire(1.0).get(url, "/health")


def test_a_server_that_does_not_start_is_one_line_with_the_end_of_its_log(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with pytest.raises(InputError, match="ended with status 1.*no GPU was found"):
        started(tmp_path, options="--unwilling")
    with pytest.raises(InputError, match="not found; install it, or set rollout.command"):
        started(tmp_path, command="no-such-engine serve")


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"engine": "vllm", "urls": ("127.0.0.1:8000",)}, "is not a URL"),
        ({"engine": "own", "start": True}, "are for engine"),
        ({"engine": "own", "urls": ("http://127.0.0.1:1",)}, "are for engine"),
    ],
)
def test_settings_that_cannot_be_obeyed_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        RolloutConfig(**settings)
    with pytest.raises(InputError, match="needs the URL"):
        open_engine(RolloutConfig("vllm"), (), Ranks(), Path(), Path())


def test_training_samples_with_the_weights_of_each_step_and_importance_weights_are_near_1(
    serve, model, tokenizer, prompts, tmp_path
):
    engine, server = serve()
    items = [ProblemRecord(p.text) for p in some_problems(6)]
    config = GRPOConfig(steps=3, prompts=2, samples=4, max_tokens=12, lr=1e-2, warmup=0, refill=0)
    model.engine, seen = engine, []

    def measure(model, step):
        asked = [prompts.ids(prompts.prove(items[0].problem))]
        seen.append((step, sample(model, tokenizer, asked, 1, HOW, 1)[0].version))
        return {}, []

    task = LengthTask(prompts)
    folder = tmp_path / "phase"
    train_grpo(Trainee(folder, "x", model, tokenizer, Ranks()), task, items, config, measure)
    assert len(server.loads) == config.steps + 1
    assert len({version for _, version in seen}) == 2  # measured at the start and at the end
    rows = read_rows(folder / "metrics.jsonl")
    assert len(rows) == config.steps
    for row in rows:
        assert abs(row["importance_weight"] - 1) < 1e-4 and row["sampler_gap"] < 1e-4
    served = dict(server.model.named_parameters())
    assert all(torch.equal(p, served[name]) for name, p in model.named_parameters())


class LengthTask(ProveTask):
    """A reward that needs no judge."""

    def rewards(self, items, rollouts):
        assert [self.prompt(i) for i in items] == [r.prompt for r in rollouts]
        rewards = [1.0 / (1 + r.ids[0]) for r in rollouts]
        return Rewards(rewards, log={"first": [float(r.ids[0]) for r in rollouts]})


def test_rewards_join_in_the_order_of_the_rollouts():
    first = Rewards([3.0], log={"a": [30.0]}, parts=[[Part(0, 3, 3.0)]])
    last = Rewards([1.0, 2.0], log={"a": [10.0, 20.0]}, parts=[[Part(0, 1, 1.0)], []])
    joined = Rewards.joined([first, Rewards([]), last], [1, 2, 0])
    assert joined.reward == [1.0, 2.0, 3.0] and joined.log == {"a": [10.0, 20.0, 30.0]}
    assert joined.parts == [[Part(0, 1, 1.0)], [], [Part(0, 3, 3.0)]]
    assert Rewards.joined([], []).reward == []


def test_a_judge_behind_an_engine_answers_as_the_phases_model_and_states_its_hash(
    serve, model, tokenizer, prompts, tmp_path
):
    engine, server = serve()
    hf.save(tmp_path / "verifier2", model)
    engine.load_folder(tmp_path / "verifier2", "hash-of-the-weights")
    assert server.version == "hash-of-the-weights"
    questions = [prompts.verify(p.text, proof) for p, proof in some_proofs(3)]
    served, how = Served(model.config, engine), Sampling(0.0, 20)
    found = TokenAuthor(served, prompts, how, identity={"weights": "hash"}).answers(questions, 2)
    assert found == OwnAuthor(model, prompts, how).answers(questions, 2)
    judge = Judge(
        TokenAuthor(served, prompts, how, identity={"weights": "hash"}), prompts, prompts.claimed_score
    )
    assert getattr(judge, "model", None) is None and judge.weights == "hash"


def test_without_seeds_a_group_is_one_request_whatever_the_caller_draws(serve, model, tokenizer, asked):
    engine, server = serve(seeded=False)
    assert len(through(engine, model, tokenizer, asked[:2], 3, seed=[[1, 2, 3], [4, 5, 6]])) == 6
    how = [r["sampling_params"] for r in server.requests]
    assert [h["n"] for h in how] == [3, 3] and all("seed" not in h for h in how)
