"""Every command that README, CONTRIBUTING and docs give, run as it stands there or listed with why it is not.

The commands run in a folder that looks like a checkout in which a small run was finished. Training is planned
(--dry-run), not done: the finished run is what `train.py --phase=flywheel` made on smaller settings.
"""

import re
import runpy
import shlex
import shutil
import sys
import tomllib

import pytest
from chat_model import make_folder
from conftest import example_domain
from scripts import ROOT, inside

TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:python|torchrun|tensorboard|pytest|pip|ruff|nanov2) [^`]+)`")
ENDPOINT = "http://127.0.0.1:8080/v1"
NOT_RUN = {  # how a command begins: why it is not run
    "pip ": "needs a network; .ci/run and the workflow do it",
    "pytest": "these tests",
    "python -m pytest": "these tests",
    "ruff": "done by .ci/run",
    "lint-imports": "done by .ci/run",
    "mypy": "done by .ci/run",
    "python -m zipfile": "needs what pip downloads before it",
    "mv ": "the same",
    "tensorboard": "a server that does not end",
    "python -m nanov2 judge": "a server that does not end; tests/pages/test_judge.py has it",
    "python tools/gguf_import.py": "needs a file of 90 MB; tests/hub/test_gguf.py imports one that it makes",
    "python -m nanov2 torchrun …": "torchrun, quieter; tests/distributed/test_startup.py has it",
    "python -c": "shows a text; tests/domains/test_second_domain.py runs the lines in it",
}
SHORTER = {  # fewer questions than the command asks
    "sample.py": ["--limit=1", "--search.rounds=1", "--search.pool=2", "--search.n=2"],
    "autolabel.py": ["--autolabel.n=2", "--autolabel.k=2", "--autolabel.m=1", "--autolabel.clean=2"],
}


def commands_in(text):
    """The commands of a text's shell blocks and of its inline code."""
    for block in SHELL.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            yield from re.sub(r"(^|\s)#.*", "", line).split("&&")
    yield from INLINE.findall(text)


def all_commands():
    found = {}
    for path in TEXTS:
        for command in commands_in(path.read_text(encoding="utf-8")):
            if command := " ".join(command.split()):
                found.setdefault(command, path.name)
    return found


@pytest.fixture(scope="module")
def checkout(finished, tmp_path_factory):
    """A folder as a user's checkout after a run: the project's files, a finished run, a chat model."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in ROOT.iterdir():
        if path.name not in ("runs", "models", ".git") and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)
    shutil.copytree(finished, folder / "runs" / "proofworld")
    for name in ("before", "after", "hacking"):
        shutil.copytree(finished, folder / "runs" / name)
    make_folder(folder / "models" / "smollm2")
    (folder / "sums.py").write_text(example_domain())
    return folder


def program(words):
    """What is started, without its launcher: "train.py", "nanov2 report", …; and its arguments."""
    if "torchrun" in (words[0], *words[3:4]):
        at = next(i for i, word in enumerate(words) if word.endswith(".py"))
        return words[at], words[at + 1 :]
    if words[0] == "nanov2" and words[1] in ("train", "sample", "autolabel"):
        return f"{words[1]}.py", words[2:]
    if words[:2] == ["python", "-m"]:
        return f"{words[2]} {words[3]}", words[4:]
    return words[1], words[2:]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("command", all_commands())
def test_a_command_of_the_texts_runs_as_it_stands(command, checkout, scripted_server, monkeypatch):
    if reason := next((why for start, why in NOT_RUN.items() if command.startswith(start)), None):
        pytest.skip(reason)
    monkeypatch.chdir(checkout)
    monkeypatch.syspath_prepend(str(checkout))  # where the example of a domain of one's own is
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = command.replace(ENDPOINT, scripted_server.url).replace("--model=NAME", "--model=judge")
    command = command.replace("RUN", "runs/proofworld").replace(" …", "")
    script, args = program(shlex.split(command))
    if script == "train.py":
        inside(script, *args, *(["--dry-run"] if "--dry-run" not in args else []))
    elif script in ("sample.py", "autolabel.py"):
        asks_much = script == "sample.py" or scripted_server.url in command
        inside(script, *args, *(SHORTER[script] if asks_much else []))
    elif script.startswith("benchmarks/"):  # minutes to hours: its options are read, no more
        with pytest.raises(SystemExit) as end:
            monkeypatch.setattr(sys, "argv", [script, *args, "--help"])
            runpy.run_path(str(ROOT / script), run_name="__main__")
        assert not end.value.code
    elif script == "docs/hacking.py":
        runpy.run_path(script, run_name="__main__")
    else:
        module, _, name = script.partition(" ")
        assert module == "nanov2", f"say in NOT_RUN why this is not run: {command}"
        monkeypatch.setattr(sys, "argv", [module, name, *args])
        runpy.run_module("nanov2", run_name="__main__")


def test_every_reason_not_to_run_a_command_is_still_needed():
    for start in NOT_RUN:
        assert any(command.startswith(start) for command in all_commands()), start


def test_files_and_links_that_the_texts_name_are_there():
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            assert "://" in target or (path.parent / target).exists(), f"{path.name}: {target}"
        names = r"`((?:nanov2|kernels|configs|tests|docs|benchmarks|tools|environments)/[\w./*-]+)"
        for name in re.findall(names, text):
            assert any(ROOT.glob(name)), f"{path.name}: {name}"


def test_the_readme_is_a_door():
    words = [w for w in TEXTS[0].read_text(encoding="utf-8").split() if re.search(r"\w", w)]
    assert len(words) <= 1300


def test_the_versions_that_were_measured_are_those_that_the_project_asks_for():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*setup["dependencies"], *setup["optional-dependencies"]["dev"]]
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = dict(line.split(";")[0].split("==") for line in lines if not line.startswith("#"))
    for requirement in asked:
        name, version = re.match(r"([\w-]+)>=([\d.]+)", requirement).groups()
        have, least = ([int(n) for n in v.split(".")] for v in (pinned[name], version))
        assert have >= least, requirement
