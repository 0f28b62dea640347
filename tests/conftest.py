"""Small models and groups that several tests share."""

import json
import os
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from scripts import flywheel

from nanov2.distributed.ranks import Ranks, derive_rng
from nanov2.domains import domain as domains
from nanov2.domains.order.demos import Noise, weak_proof
from nanov2.domains.order.domain import OrderLanguage
from nanov2.domains.order.tokenizer import order_tokenizer
from nanov2.domains.order.world import Difficulty, make_problem, write_proof
from nanov2.model.decoder import Model, ModelConfig

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def drawn_numbers():
    """torch's global generator, which some tests draw from, does not depend on the tests before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer():
    return order_tokenizer()


@pytest.fixture(scope="session")
def prompts(tokenizer):
    return OrderLanguage(tokenizer, strict=True)


@pytest.fixture
def ranks():
    return Ranks()


def example_domain():
    """The file of a domain of one's own, as the docstring of nanov2/domains/domain.py gives it."""
    return textwrap.dedent(domains.__doc__[domains.__doc__.index("    # sums.py:") :])


def small_model(tokenizer, seed=0, **changes):
    settings = dict(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48) | changes
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **settings)
    return Model(config).init_weights(torch.Generator().manual_seed(seed))


@pytest.fixture
def model(tokenizer):
    return small_model(tokenizer)


def some_problems(n, seed=0, chain=(2, 4), facts=(4, 9)):
    return [make_problem(derive_rng("test", seed, i), Difficulty(chain, facts)) for i in range(n)]


NOISE = Noise()
MIXED = Noise(jump=0.15, overstate=0.15, stop=0.0, stray=0.5)  # proofs of all scores


def some_proofs(n, seed=0, noise=MIXED):
    problems = some_problems(n, seed)
    rng = derive_rng("test proofs", seed)
    return [(p, write_proof(weak_proof(rng, p, noise))) for p in problems]


class ProveTask:
    """A task of one proof that no judge is asked about; the rewards are the test's."""

    max_turns = max_given = 1
    judges: dict = {}

    def __init__(self, prompts):
        self.prompts = prompts

    def prompt(self, item):
        return self.prompts.ids(self.prompts.prove(item.problem))

    def next_turn(self, rollout):
        return None


def varied(kind):
    """The class of a task, for as long as this is entered, with rewards that vary whatever a model writes."""
    rewards = kind.rewards

    def by_tokens(self, items, rollouts):
        out = rewards(self, items, rollouts)
        out.reward = [float(sum(r.ids)) for r in rollouts]
        return out

    return patch.object(kind, "rewards", by_tokens)


class ScriptedServer:
    """A process of scripted_endpoint.py, which knows the grades of `path`."""

    def __init__(self, *paths):
        command = [sys.executable, str(Path(__file__).with_name("scripted_endpoint.py")), *map(str, paths)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}/v1"

    def stats(self):
        """Requests, and the most at a time, since the last call."""
        with urllib.request.urlopen(self.url + "/stats") as reply:
            return json.load(reply)


@pytest.fixture(scope="session")
def scripted_server():
    pytest.importorskip("openai", reason="needs the openai library")
    server = ScriptedServer(Path(__file__).parent / "data" / "open-proof-corpus-sample.jsonl")
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a whole small run, which many tests read and none may change for others."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    code, _, err = flywheel(folder)
    assert code == 0, err
    return folder


# `pytest -m quick` answers in half a minute: all tests but those below, whose durations were measured
# (`pytest --durations=50`). Whole files are not even imported.
SLOW_FILES = (
    "distributed",  # several processes
    "domains/integers/test_cycle.py",  # a whole cycle
    "pages",  # a browser
    "domains/natural/test_pretrained.py",  # a whole cycle
    "hub/test_endpoint.py",  # a server that lets one wait
    "hub/test_gguf.py",
    "hub/test_hf.py",  # transformers
    "kernels/test_ahead_of_time.py",  # compiles for GPUs
    "kernels/test_linear_policy_loss.py",
    "kernels/test_vocabulary_parallel.py",  # two processes
    "run/test_benchmarks.py",
    "run/test_engine_phases.py",
    "run/test_folder.py",
    "run/test_fuzz.py",
    "run/test_install.py",
    "run/test_phases.py",
    "run/test_takeover.py",
    "test_gpu_benchmark.py",
    "test_readme.py",
)
SLOW_TESTS = (
    "test_C1_C17_two_ranks_have_the_gradient_and_norm_of_one",
    "test_a_decode_steps_operators_do_not_grow_with_the_completion",
    "test_a_dry_run_makes_nothing_on_disk",
    "test_a_hostile_line_of_ten_megabytes_is_read_in_time",
    "test_a_journal_cut_anywhere_keeps_its_whole_lines_and_goes_on",
    "test_a_template_that_loops_or_grows_is_one_line_within_seconds",
    "test_any_other_text_comes_back_too_and_no_text_makes_a_control_token",
    "test_every_field_refuses_what_it_cannot_be_by_name",
    "test_the_notebook_runs_cell_by_cell_on_a_real_run",
    "test_operator_keeps_the_contract_of_custom_operators",
    "test_torch_compile_passes_through",
)


def is_slow_file(path):
    path = path.relative_to(Path(__file__).parent)
    return any(path.is_relative_to(slow) for slow in SLOW_FILES)


def pytest_ignore_collect(collection_path, config):
    if config.option.markexpr == "quick" and is_slow_file(collection_path):
        return True


def pytest_collection_modifyitems(items):
    for item in items:
        interpreted = "kernels" in item.path.parts and "triton" in item.name
        if not (is_slow_file(item.path) or item.originalname in SLOW_TESTS or interpreted):
            item.add_marker("quick")
