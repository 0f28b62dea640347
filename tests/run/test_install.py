"""The command `nanov2`, and what is installed: built here as pyproject.toml says, without pip."""

import os
import shutil
import subprocess
import sys
import tomllib

import pytest
from scripts import ROOT

SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder as site-packages is after `pip install .`."""
    target = tmp_path_factory.mktemp("site-packages")
    for package in SETUP["packages"]:
        source = ROOT / SETUP["package-dir"].get(package, package.replace(".", "/"))
        patterns = ["*.py", *SETUP["package-data"].get(package, [])]
        for path in {p for pattern in patterns for p in source.glob(pattern) if p.is_file()}:
            goal = target / package.replace(".", "/") / path.relative_to(source)
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, goal)
    return target


def nanov2(folder, installed, *args):
    """`nanov2 …` in a folder that holds nothing of the project."""
    env = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    start = "import sys; sys.argv[0] = 'nanov2'; from nanov2.__main__ import main; main()"
    command = [sys.executable, "-P", "-c", start, *args]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_every_package_and_file_of_data_is_installed():
    packages = {p.parent.relative_to(ROOT).as_posix().replace("/", ".") for p in ROOT.glob("nanov2/**/*.py")}
    assert packages == {p for p in SETUP["packages"] if p not in SETUP["package-dir"]}
    for name, folder in SETUP["package-dir"].items():
        assert name in SETUP["packages"] and (ROOT / folder).is_dir()


def test_an_installed_nanov2_trains_with_its_own_configurations(tmp_path, installed):
    code, out, err = nanov2(tmp_path, installed, "train", "--dry-run", "--config=configs/smoke.toml")
    assert code == 0 and "parameters" in out, err
    code, out, err = nanov2(tmp_path, installed, "train", "--help")
    assert code == 0 and "[verifier2]" in out
    assert not list(tmp_path.iterdir())


def test_an_installed_nanov2_makes_pages(tmp_path, installed):
    (tmp_path / "run").mkdir()
    code, _, err = nanov2(tmp_path, installed, "report", "run")
    assert code == 0 and (tmp_path / "run" / "report.html").is_file(), err


def test_an_unknown_command_is_one_line_with_the_known_ones(tmp_path, installed):
    code, out, err = nanov2(tmp_path, installed, "tran")
    assert code == 2 and err.startswith("error: no command 'tran'; one of train, sample, autolabel, report")
    assert nanov2(tmp_path, installed)[0] == 2
    assert "nanov2 COMMAND" in nanov2(tmp_path, installed, "--help")[1]
