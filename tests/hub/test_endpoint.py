"""Endpoints over real sockets: a server process that fails in every way that servers do."""

import dataclasses
import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ScriptedServer

from nanov2.domains import language as natural
from nanov2.errors import InputError
from nanov2.hub.author import Answer
from nanov2.hub.cache import Cache
from nanov2.hub.endpoint import Endpoint, EndpointConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ask(scripted_server):
    scripted_server.stats()

    def ask(model, *texts, n=1, first=0, **settings):
        config = EndpointConfig(scripted_server.url, model, **{"cache": ""} | settings)
        return Endpoint(config).answers([natural.user(t) for t in texts], n, first)

    return ask


@pytest.mark.parametrize("fault", ["500", "half", "drop"])
def test_faults_that_pass_are_tried_again(ask, scripted_server, fault):
    ((answer,),) = ask(fault, f"hello {time.time()}")
    assert answer.text.startswith("hello") and answer.tokens == 7
    assert scripted_server.stats()["requests"] == 2


def test_a_busy_server_is_waited_for_as_long_as_it_asks(ask, scripted_server):
    begin = time.monotonic()
    ask("429", f"hello {begin}")
    assert time.monotonic() - begin >= 1 and scripted_server.stats()["requests"] == 2


def test_a_server_that_stays_broken_is_one_line_without_the_key_and_loses_no_answer(
    ask, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    cache = tmp_path / "c.jsonl"
    with pytest.raises(InputError, match="status 500: .*out of memory, Bearer .*start again") as e:
        ask("broken", "good", "bad", concurrency=1, retries=0, cache=str(cache))
    assert len(cache.read_text().splitlines()) == 1
    assert "sk-secret" not in str(e.value) + cache.read_text() and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "model, settings, message",
    [
        ("slow", {"timeout": 0.2}, "no answer within 0.2 s, 0 times again"),
        ("html", {}, "not a chat completion .*does the URL end"),
        ("not-json", {}, "not a chat completion"),
        ("no-model", {}, "status 404: .*model not found"),
        ("", {}, "which model"),
    ],
)
def test_what_cannot_be_answered_is_one_clear_line(ask, model, settings, message):
    with pytest.raises(InputError, match=message) as e:
        ask(model, "hello", retries=0, **settings)
    assert "\n" not in str(e.value)


def test_an_answer_has_a_deadline_as_a_whole(ask):
    begin = time.monotonic()
    with pytest.raises(InputError, match="no answer within 1 s"):
        ask("drip", "x", retries=0, timeout=1.0)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("model, message", [("flood", "more than 32 MiB"), ("packed", "packed reply")])
def test_a_reply_has_a_largest_size(ask, model, message):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=message):
        ask(model, "x", retries=0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def completion(content, tokens) -> str:
    message = {"role": "assistant", "content": content}
    usage = {"completion_tokens": tokens}
    return json.dumps({"choices": [{"finish_reason": "stop", "message": message}], "usage": usage})


@pytest.mark.parametrize(
    "reply",
    [
        *(completion(c, 7) for c in (["a"], 7, {"text": "a"}, True)),
        *("[]", "3", '"text"', "null", '{"choices": {}}', '{"choices": [3]}', '{"choices": [null]}'),
        '{"choices": [{"message": []}]}',
    ],
)
def test_a_reply_of_other_types_is_one_line_and_nothing_is_kept(ask, tmp_path, reply):
    with pytest.raises(InputError, match="not a chat completion") as e:
        ask(f"odd {reply}", "x", retries=0, cache=str(tmp_path / "c.jsonl"))
    assert "\n" not in str(e.value) and not (tmp_path / "c.jsonl").exists()


def test_a_nested_bomb_is_one_line(ask):
    with pytest.raises(InputError, match="not a chat completion"):
        ask("nested", "x", retries=0)


@pytest.mark.parametrize("tokens", ["many", -3, 1.5, None, [7], 10**40])
def test_a_count_of_tokens_that_is_none_is_zero(ask, tmp_path, tokens):
    cache = str(tmp_path / "c.jsonl")
    assert ask(f"odd {completion('a', tokens)}", "x", cache=cache) == [[Answer("a", 0)]]
    assert len(Cache(cache).known) == 1


@pytest.mark.parametrize("key", ["sk-secret\n", "sk\r\nsecret", "sk secret", "sk-ключ"])
def test_a_key_that_no_header_can_carry_is_refused_unprinted(ask, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match="OPENAI_API_KEY holds a character") as e:
        ask("echo", "x")
    assert "secret" not in str(e.value) and "ключ" not in str(e.value)


def test_answers_are_those_of_one_server_and_one_sampling(scripted_server, tmp_path):
    cache, other = str(tmp_path / "c.jsonl"), scripted_server.url.replace("127.0.0.1", "localhost")
    scripted_server.stats()
    for n, change in enumerate([{}, {"url": other}, {"seed": 1}, {"temperature": 0.5}, {"max_tokens": 9}], 1):
        config = dataclasses.replace(EndpointConfig(scripted_server.url, "echo", cache=cache), **change)
        Endpoint(config).answers([natural.user("x")])
        Endpoint(config).answers([natural.user("x")])
        assert len(Cache(cache).known) == n
    assert scripted_server.stats()["requests"] == 5


def test_no_server_and_no_url_are_one_clear_line():
    for url, message in (("http://127.0.0.1:9/v1", "cannot connect"), ("localhost", "is not a URL")):
        with pytest.raises(InputError, match=message):
            Endpoint(EndpointConfig(url, "m", retries=0, cache="")).answers([natural.user("x")])


def test_samples_have_seeds_of_their_own_and_go_on_where_the_last_stopped(ask, scripted_server):
    ((a, b),) = ask("echo", "x", n=2)
    ((c, d),) = ask("echo", "x", n=2, first=1)
    assert b == c and len({a, b, d}) == 3
    ask("echo", "same", "same", n=3)  # the same question twice is asked once
    assert scripted_server.stats()["requests"] == 4 + 3


def test_no_more_requests_at_a_time_than_asked_for():
    server = ScriptedServer()  # of its own: requests that timed out in other tests may still be running
    config = EndpointConfig(server.url, "busy", cache="", concurrency=3)
    Endpoint(config).answers([natural.user(str(i)) for i in range(20)])
    stats = server.stats()
    server.process.kill()
    assert stats["requests"] == 20 and 1 < stats["most"] <= 3


def test_no_answer_is_told_from_a_wrong_one(ask):
    assert ask("length", "x") == [[Answer(None, 7, "cut off")]]
    assert ask("empty", "x") == [[Answer(None, 7, "empty")]]
    (long,), (short,) = ask("context", "long", "short", retries=0)
    assert long == Answer(None, 0, "too long") and short.text.startswith("short")


@pytest.mark.parametrize("torn", [b'{"key": "ab', b'{"key": "caf\xc3', b"\x00\x00"])
def test_answers_come_from_the_cache_and_a_torn_line_is_dropped(ask, scripted_server, tmp_path, torn):
    cache = tmp_path / "c.jsonl"
    first = ask("echo", "a", "b", n=2, cache=str(cache))
    cache.write_bytes(cache.read_bytes() + torn)
    assert ask("echo", "a", "b", n=2, cache=str(cache)) == first
    assert scripted_server.stats()["requests"] == 4
    assert len(Cache(cache).known) == len(cache.read_text().splitlines()) == 4
    ask("echo", "a", cache=str(cache), temperature=0.5)
    assert scripted_server.stats()["requests"] == 1  # other sampling is another question


def test_a_bad_line_in_the_cache_is_named(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"key": "a", "text": "x"}\n[]\n')
    with pytest.raises(InputError, match="c.jsonl, line 2"):
        Cache(tmp_path / "c.jsonl")


def test_a_killed_process_asks_nothing_twice(scripted_server, tmp_path):
    cache = tmp_path / "c.jsonl"
    code = (
        "from nanov2.domains import language as natural; from nanov2.hub.endpoint import *; import sys;"
        f"c = EndpointConfig({scripted_server.url!r}, 'busy', cache={str(cache)!r}, concurrency=2);"
        "a = Endpoint(c).answers([natural.user(f'kill {i}') for i in range(60)]); print(len(a))"
    )
    scripted_server.stats()
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not cache.is_file() or len(cache.read_text().splitlines()) < 10:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.2)
    kept = len(Cache(cache).known)
    asked = scripted_server.stats()["requests"]
    assert asked - 2 <= kept <= asked < 60
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    assert scripted_server.stats()["requests"] == 60 - kept
    keys = [json.loads(line)["key"] for line in cache.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 60


def sample(scripted_server, mode, tmp_path, *flags):
    """Rows of sample.py with the scripted judge, and how many requests they took."""
    command = [sys.executable, "sample.py", mode, f"--endpoint={scripted_server.url}", "--model=judge"]
    command += [f"--endpoint.cache={tmp_path}/answers.jsonl", f"--output={tmp_path}/{mode}.jsonl"]
    scripted_server.stats()
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / f"{mode}.jsonl").read_text().splitlines()]
    return rows, scripted_server.stats()["requests"]


def test_a_search_asks_the_endpoint_and_goes_on_where_it_was(scripted_server, tmp_path):
    (tmp_path / "problems.jsonl").write_text('{"problem": "Show A."}\n{"problem": "Show B."}\n')
    flags = [f"--data={tmp_path}/problems.jsonl", "--search.pool=4", "--search.rounds=2", "--search.n=4"]
    rows, requests = sample(scripted_server, "search", tmp_path, *flags)
    assert [r["problem"] for r in rows] == ["Show A.", "Show B."] and requests > 20
    for row in rows:
        assert row["proof"].startswith("By induction") and row["proofs"] >= 4 and row["tokens"] >= 7 * 8
        assert all(0 <= c["weight"] <= 1 for c in row["critiques"])
    again, requests = sample(scripted_server, "search", tmp_path, *flags)
    assert again == rows and requests == 0
    (tmp_path / "answers.jsonl").unlink()  # the state alone is enough
    assert sample(scripted_server, "search", tmp_path, *flags) == (rows, 0)


def test_refinement_stops_when_its_tokens_are_spent(scripted_server, tmp_path):
    problem = "--problem=Show A."
    (row,), requests = sample(scripted_server, "refine", tmp_path, problem, "--rounds=5")
    assert row["proofs"] == 2 and row["tokens"] == 14 and requests == 2  # the revision finds no issue
    (row,), _ = sample(scripted_server, "refine", tmp_path, problem, "--rounds=5", "--budget=7")
    assert row["proofs"] == 1 and row["self_score"] == 0.5
