"""Hostile data at every parser and reader: no crash, no hang, no wrong acceptance.

NANOV2_FUZZ=10000 pytest tests/run/test_fuzz.py        # that many cases of each, for the default 40
"""

import json
import os
import time

import pytest
import torch
from conftest import small_model, some_problems
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from nanov2.distributed.ranks import Ranks
from nanov2.domains import language as natural
from nanov2.domains.data import DataConfig, load
from nanov2.domains.order import world
from nanov2.domains.order.tokenizer import PHRASES, order_tokenizer
from nanov2.domains.phrases import CONTROL
from nanov2.errors import InputError
from nanov2.hub.chat import load_model, save_model
from nanov2.hub.endpoint import Cache
from nanov2.method.consensus import RULES, Assessed, Rule
from nanov2.method.search import open_state
from nanov2.pages.report import build_report
from nanov2.pages.watch import frame
from nanov2.records import (
    CritiqueRecord,
    ProblemRecord,
    ProofRecord,
    TrajectoryRecord,
    parse_record,
    read_jsonl,
    write_jsonl,
)
from nanov2.rl.logs import read_rows
from nanov2.run.config import Config, load_config
from nanov2.run.folder import Run

CASES = int(os.environ.get("NANOV2_FUZZ", "40"))
fuzz = settings(
    max_examples=CASES,
    deadline=5000,  # ms a case: a hang fails
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
KINDS = [ProblemRecord, ProofRecord, CritiqueRecord, TrajectoryRecord]
FIELDS = ["problem", "proof", "critique", "score", "quality", "turns", "reward", "kind", "source", "label"]

any_text = st.text(alphabet=st.characters(exclude_categories=[]), max_size=60)  # lone surrogates too
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), any_text)
any_json = st.recursive(
    scalars, lambda x: st.lists(x, max_size=4) | st.dictionaries(any_text, x, max_size=4), max_leaves=8
)
WORDS = [*PHRASES, *(f" {r} " for r in world.RELATIONS), *world.TERMS, *CONTROL]
world_words = st.lists(st.sampled_from([*WORDS, "\\boxed{10}", " "]), max_size=40)
world_text = st.one_of(world_words.map("".join), any_text)


BOMBS = {  # made to choke a reader
    "nested lists": "[" * 200_000,
    "nested objects": '{"problem":' * 100_000,
    "a huge number": '{"problem": "x", "proof": "y", "score": ' + "9" * 5000 + "}",
    "no object": "7",
    "nothing": "\0",
}
WRONG = {  # made to be taken for a record
    "infinity": '{"problem": "x", "proof": "y", "score": Infinity}',
    "not a number": '{"problem": "x", "proof": "y", "score": NaN}',
    "half a character": '{"problem": "\\ud800", "proof": "y", "score": 1}',
    "a list for a text": '{"problem": ["x"], "proof": "y", "score": 1}',
}


# --- the world's parsers --------------------------------------------------------------------------


@fuzz
@given(world_text, world_text, world_text)
def test_world_parsers_take_any_text_and_accept_only_what_they_write(x, y, v):
    if (problem := world.parse_problem(x)) is not None:
        assert problem.text == x.strip()
        assert problem.solution is None or problem.solution
    if (steps := world.parse_proof(y)) is not None:
        assert world.write_proof(steps) == y.strip()
    if (critique := world.parse_critique(v)) is not None:
        assert world.write_critique(critique) == v.strip()
    if (meta := world.parse_meta(v)) is not None:
        assert world.write_meta(meta) == v.strip()
    target = problem or some_problems(1)[0]
    assert world.grade_proof(target, y) in (0.0, 0.5, 1.0)
    grade = world.grade_critique(target, y, v)
    assert grade.quality in (0.0, 0.5, 1.0)
    if steps is None or natural.read_score(v) is None:
        assert grade.quality == 0


@fuzz
@given(st.integers(0, 10**6), st.data())
def test_a_changed_proof_is_not_taken_for_the_right_one(seed, data):
    """A right proof with one word replaced scores 1 only if it still is a chain of facts to the goal."""
    problem = some_problems(1, seed=seed)[0]
    words = world.write_proof(problem.solution).split(" ")
    i, new = data.draw(st.integers(0, len(words) - 1)), data.draw(st.sampled_from(sorted(WORDS)))
    words[i] = new.strip()
    if world.grade_proof(problem, " ".join(words)) == 1.0:
        steps = world.parse_proof(" ".join(words))
        assert (steps[0].left, steps[-1].right) == (problem.goal.left, problem.goal.right)
        assert all(problem.says(s.left, s.right) == s.relation for s in steps)
        strength = world.combined(world.STRENGTH[s.relation] for s in steps)
        assert world.yields(strength, problem.goal.relation)


@fuzz
@given(st.text(alphabet=st.characters(exclude_categories=[]), max_size=200), st.integers(0, 3))
def test_natural_parsers_take_any_text(text, kind):
    marks = ["", "\\boxed{1}", "## Solution\n", "</think>"]
    score = natural.read_score(text + marks[kind])
    assert score in (None, 0.0, 0.5, 1.0)
    proof = natural.read_proof(marks[kind] + text)
    assert proof is None or (proof.text.strip() and proof.self_score in (None, 0.0, 0.5, 1.0))


LONG = 2_000_000


@pytest.mark.parametrize(
    "text",
    [
        "a " * LONG,
        "Indeed, $" + "a < " * LONG + "b$.",
        "\\boxed{" * (LONG // 7),
        "\\boxed{1} " * (LONG // 10),
        "#" * LONG,
        "# \n" * (LONG // 3),
        "## Solution\n" * (LONG // 12),
        "<think>" * (LONG // 7),
        "{" * LONG + "}" * LONG,
        "\\text" + " " * LONG,
    ],
    ids=lambda text: repr(text[:8]),
)
def test_long_texts_do_not_hang_a_parser(text):
    begin = time.process_time()
    for read in (
        world.parse_problem,
        world.parse_proof,
        world.parse_critique,
        world.parse_meta,
        natural.read_score,
        natural.read_proof,
    ):
        read(text)
    assert time.process_time() - begin < 20


# --- control tokens -------------------------------------------------------------------------------

TOKENIZER = order_tokenizer()


@fuzz
@given(
    st.lists(
        st.one_of(st.sampled_from([*CONTROL, "<unk>", "<prove>a", "a<end>", " ", "\n"]), st.text(max_size=9))
    )
)
def test_no_text_becomes_a_control_token(parts):
    text = "".join(parts)
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.control.isdisjoint(ids)
    assert TOKENIZER.control.isdisjoint(TOKENIZER.encode(" ".join(parts)))


# --- records --------------------------------------------------------------------------------------


@fuzz
@given(st.sampled_from(KINDS), st.one_of(st.dictionaries(st.sampled_from(FIELDS), any_json), any_json))
def test_a_record_is_read_whole_and_well_typed_or_refused(kind, row):
    try:
        record = parse_record(json.dumps(row), kind, "here:1")
    except InputError as e:
        assert str(e).startswith("here:1: ") and "\n" not in str(e)
        return
    assert set(row) <= set(FIELDS)
    for name in ("score", "quality"):
        assert getattr(record, name, None) in (None, 0.0, 0.5, 1.0)
    assert isinstance(record.problem, str) and record.problem.encode()  # not half a character


@fuzz
@given(st.binary(max_size=200))
def test_a_file_of_any_bytes_is_read_or_refused_by_every_reader(tmp_path, data):
    for name, read in (
        ("records.jsonl", lambda p: read_jsonl(p, ProofRecord)),
        ("graded.jsonl", lambda p: load(DataConfig(str(p)), ProofRecord)),
        ("graded.csv", lambda p: load(DataConfig(str(p)), ProofRecord)),
        ("settings.toml", load_config),
        ("settings.json", load_config),
        ("cache.jsonl", Cache),
        ("state.jsonl", lambda p: open_state(p, {})),
        ("metrics.jsonl", read_rows),
    ):
        (tmp_path / name).write_bytes(data)
        try:
            read(tmp_path / name)
        except InputError as e:
            assert name in str(e) and "\n" not in str(e)


@fuzz
@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_records_survive_being_written_and_read(tmp_path, texts):
    """Whatever the text holds: line separators of every kind, quotes, nul."""
    records = [ProofRecord(text, text, 0.5) for text in texts]
    write_jsonl(tmp_path / "r.jsonl", records)
    assert read_jsonl(tmp_path / "r.jsonl", ProofRecord) == records


@pytest.mark.parametrize("name", WRONG)
def test_what_only_looks_like_a_record_is_refused(tmp_path, name):
    with pytest.raises(InputError):
        parse_record(WRONG[name], ProofRecord, "here:1")
    (tmp_path / "wrong.jsonl").write_text(WRONG[name] + "\n")
    with pytest.raises(InputError):
        load(DataConfig(str(tmp_path / "wrong.jsonl")), ProofRecord)


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_by_every_reader_of_json(tmp_path, name):
    text = BOMBS[name]
    for kind in KINDS:
        with pytest.raises(InputError):
            parse_record(text, kind, "here:1")
    path = tmp_path / "bomb.json"
    path.write_text(text)
    with pytest.raises(InputError):
        load_config(path)
    assert read_rows(path) == []
    with pytest.raises(InputError):
        load(DataConfig(str(path)), ProofRecord)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError):
        Run(tmp_path, Config(), Ranks()).claim()
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError):
        frame(tmp_path, 80)
    with pytest.raises(InputError):
        build_report(tmp_path)
    path.write_text(text + "\n")
    with pytest.raises(InputError):
        Cache(path)
    (tmp_path / "state.jsonl").write_text("{}\n" + text + "\n")
    with pytest.raises(InputError):
        open_state(tmp_path / "state.jsonl", {})


def test_a_line_of_ten_megabytes_is_a_record_like_any_other(tmp_path):
    record = ProofRecord("x " * 5_000_000, "a < b qed", 1.0)
    write_jsonl(tmp_path / "long.jsonl", [record, record])
    begin = time.process_time()
    assert read_jsonl(tmp_path / "long.jsonl", ProofRecord) == [record, record]
    assert time.process_time() - begin < 10


# --- settings, labels, run folders ------------------------------------------------------------------

sections = ["grpo", "base", "model", "world", "verifier", "lap_verifier2", "parallel", "seed", "noise", ""]
fields = ["steps", "lr", "dim", "n_heads", "n_kv_heads", "hard_chain", "reward", "shard", "keep", ""]


@fuzz
@given(
    st.dictionaries(
        st.sampled_from(sections) | any_text,
        st.dictionaries(st.sampled_from(fields) | any_text, any_json, max_size=3) | any_json,
        max_size=4,
    )
    | any_json,
    st.lists(
        st.one_of(
            any_text,
            st.builds("--{}.{}={}".format, st.sampled_from(sections), st.sampled_from(fields), any_text),
        ),
        max_size=2,
    ),
)
def test_settings_are_read_well_typed_or_refused(tmp_path, tree, overrides):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(tree))
    try:
        config = load_config(path, overrides)
    except InputError as e:
        assert "\n" not in str(e)
        return
    assert isinstance(config.verifier.steps, int) and isinstance(config.base.lr, float)
    assert config.parallel.shard in ("none", "full", "hybrid")


scores = st.sampled_from([None, 0.0, 0.5, 1.0])
critiques = st.builds(
    Assessed, st.text(max_size=5), scores, st.booleans(), st.lists(scores, max_size=4).map(tuple)
)


@fuzz
@given(st.lists(critiques, min_size=1, max_size=12), st.integers(1, 4), st.sampled_from(["unclear", "right"]))
def test_labels_by_consensus_are_scores_that_enough_valid_critiques_give(given_, k, disputed):
    for name in RULES:
        assert Rule(name, k, disputed)(given_) in (None, 0.0, 0.5, 1.0)
    label = Rule("consensus", k, disputed)(given_)
    valid = [c.score for c in given_ if c.score is not None and c.issue and c.valid]
    if label is not None and label < 1:
        assert valid.count(label) >= k and label == min(valid)


@fuzz
@given(
    st.sampled_from(
        ["run.json", "base/phase.json", "base/eval.json", "base/metrics.jsonl", "base/samples.jsonl"]
    ),
    st.one_of(any_json.map(lambda x: json.dumps(x).encode()), st.binary(max_size=60)),
)
def test_report_and_terminal_view_of_a_spoilt_run_are_made_or_refused(tmp_path, name, data):
    (tmp_path / "base").mkdir(exist_ok=True)
    for old in tmp_path.glob("**/*.json*"):
        old.unlink()
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / name).write_bytes(data)
    for make in (lambda: build_report(tmp_path), lambda: frame(tmp_path, 80)):
        try:
            make()
        except InputError as e:
            assert "\n" not in str(e)


# --- models ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, small_model(TOKENIZER), TOKENIZER)
    return folder


@fuzz
@given(
    st.sampled_from(["config.json", "tokenizer.json", "model.safetensors"]),
    st.one_of(st.binary(max_size=200), st.tuples(st.integers(0, 2000), st.integers(0, 255))),
)
def test_a_spoilt_model_is_read_or_refused_and_runs_no_code(finished_model, tmp_path, name, harm):
    """Any bytes instead of a file, or any one byte of it changed."""
    for file in finished_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = bytearray(harm if isinstance(harm, bytes) else (finished_model / name).read_bytes())
    if isinstance(harm, tuple):
        data[harm[0] % len(data)] = harm[1]
    (tmp_path / name).write_bytes(bytes(data))
    try:
        load_model(tmp_path)
    except InputError:
        pass


@pytest.mark.parametrize(
    "change",
    [
        {"n_layers": 10**9},
        {"dim": 10**9},
        {"n_heads": 0},
        {"n_kv_heads": 0},
        {"vocab_size": -1},
        {"dim": "8"},
    ],
)
def test_an_absurd_shape_is_refused_at_once(finished_model, tmp_path, change):
    for file in finished_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    begin = time.process_time()
    with pytest.raises(InputError):
        load_model(tmp_path)
    assert time.process_time() - begin < 5


def test_a_pickle_in_the_place_of_weights_is_not_opened(finished_model, tmp_path):
    for file in finished_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"lm_head.weight": Evil()}, tmp_path / "model.safetensors")
    with pytest.raises(InputError):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_tensors_that_do_not_belong_are_refused(finished_model, tmp_path):
    for file in finished_model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(save({"../../outside": torch.zeros(1)}))
    with pytest.raises(InputError, match="tensor model.layers.0.* is missing"):
        load_model(tmp_path)
