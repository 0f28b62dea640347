"""A lap of the cycle on the integers world, as small as it can be: all figures are there, learnt or not."""

import json
import math

from scripts import LAP1, run

SMALLEST = [  # short problems are learnt in fewer steps, and answered in fewer tokens
    "--integers.labelled_moduli=[2,2]",
    "--integers.labelled_variables=[1,1]",
    "--integers.labelled_unused=0",
    "--integers.labelled_coefficient=9",
    "--integers.hard_moduli=[2,2]",
    "--integers.hard_variables=[1,2]",
    "--integers.hard_unused=0",
    "--world.problems=40",
    "--world.hard_problems=40",
    "--world.held_out=6",
    "--world.validation=3",
    "--base.steps=240",
    "--base.batch=8",
    "--coldstart.problems=16",
    "--coldstart.subset=24",
    "--grpo.steps=1",
    "--grpo.prompts=2",
    "--grpo.samples=3",
    "--laps=1",
    "--autolabel.problems=4",
    "--eval.proofs=8",
    "--eval.samples=1",
    "--eval.rounds=1",
    "--eval.pass_at=[1,4,0,0]",
    "--eval.pass_problems=2",
]
FIGURES = {
    "base": ["labelled/true_score", "hard/true_score"],
    "verifier": ["labelled/score_accuracy", "labelled/critique_quality"],
    "meta": ["labelled/meta_balanced_accuracy"],
    "verifier2": ["labelled/score_accuracy", "labelled/critique_quality"],
    "generator": ["labelled/true_score", "hard/true_score"],
    "selfverify": ["hard/final_true_score"],
}


def test_the_whole_cycle_runs_on_the_integers_world_and_has_its_figures(tmp_path):
    folder = tmp_path / "run"
    code, _, err = run("train.py", "--config=configs/integers-smoke.toml", f"--dir={folder}", *SMALLEST)
    assert code == 0, err
    assert all((folder / phase / "phase.json").is_file() for phase in LAP1)
    for phase, names in FIGURES.items():
        for name in names:
            figure = json.loads((folder / phase / "eval.json").read_text())["after"][name]
            assert figure["n"] > 0 and math.isfinite(figure["value"]), (phase, name)
    assert "NaN" not in (folder / "report.json").read_text() and (folder / "report.html").is_file()
