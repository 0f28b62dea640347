"""Mistakes that anyone makes: each ends at once with one line that says what is wrong, and makes nothing."""

import re
import time

import pytest
from scripts import ends
from test_weights import random_run

SMALL = ["--world.held_out=4", "--world.validation=2", "--world.problems=20", "--world.hard_problems=10"]
NARROW = ["--world.hard_chain=[1, 1]", "--world.hard_facts=[1, 1]"]
PROBLEM = "--problem=Suppose that sets satisfy $c = f$ and $f \\subset q$. Show that $c \\subset q$."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with a run, and with files such as users have."""
    folder = tmp_path_factory.mktemp("work")
    random_run(folder / "runs" / "a")
    files = {
        "notes.txt": "not settings",
        "half.toml": "[verifier\nsteps = 3\n",
        "typo.toml": "[verfier]\nsteps = 3\n",
        "word.toml": '[verifier]\nsteps = "many"\n',
        "empty.jsonl": "",
        "broken.jsonl": '{"problem": "a", "proof": "b"}\n{"problem": \n',
        "other.jsonl": '{"question": "a", "answer": "b"}\n',
        "scores.jsonl": '{"problem": "a", "proof": "b", "score": 7}\n',
        "hello.jsonl": '{"problem": "hello", "proof": "Indeed, $a < b$."}\n',
        "list.json": "[1, 2]",
        "good.jsonl": '{"problem": "a", "proof": "b"}\n',
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


TRAIN = [
    (["--phase=verifer"], "unknown phase.*'verifer'; did you mean verifier?"),
    (["--phase=all"], "unknown phase"),
    (["--phase"], "--phase: expected one argument; see --help"),
    (["verifier"], "cannot read argument 'verifier': write --section.field=value, or see --help"),
    (
        ["--phase=verifier"],
        "coldstart is missing or unfinished: run `python train.py --phase=coldstart --dir=",
    ),
    (["--phase=meta"], "run `python train.py --phase=verifier --dir="),
    (["--phase=generator", "--lap=3"], "--lap=3: this run has laps 1 to 2"),
    (["--lap=2"], "the flywheel does all laps; name one phase"),
    (["--lap=x"], "argument --lap: invalid int value: 'x'; see --help"),
    (["--laps=0"], "laps must be from 1 to 1,000, found 0"),
    (["--seed=-1"], "seed must be from 0"),
    (["--seed=abc"], "seed must be int, found 'abc'"),
    (["--verifier.stepz=1"], "unknown field verifier.stepz; did you mean verifier.steps?"),
    (["--verfier.steps=1"], "unknown field verfier; did you mean verifier?"),
    (["--verifier.steps", "10"], "cannot read argument '--verifier.steps': write --section.field=value"),
    (["--verifier.steps=1e3"], "verifier.steps must be int, found 1000.0"),
    (["--verifier.steps=-3"], "verifier.steps must be from 0"),
    (["--verifier.lr=fast"], "verifier.lr must be float, found 'fast'"),
    (["--verifier.lr=0"], "verifier.lr must be above 0"),
    (["--grpo.samples=1"], "samples must be from 2"),
    (["--grpo.loss_type=ppo"], 'loss_type must be one of "dapo", "grpo", "dr_grpo", "gspo", found .ppo.'),
    (["--grpo.first_samples=1"], "first_samples 1 must be 0, or from 2 to less than samples"),
    (["--grpo.samples=8", "--grpo.first_samples=8"], "first_samples 8 must be 0, or from 2 to less than"),
    (["--grpo.kl_weighted=true"], "kl_weighted weighs a KL that kl_coef = 0 leaves out"),
    (["--grpo.loss_type=gspo", "--grpo.ratio=token"], "gspo has one ratio a completion"),
    (["--grpo.off_policy_delta=0.5", "--grpo.is_cap=0"], "set epochs or minibatches above 1, or is_cap"),
    (["--verifier.off_policy_delta=0.5"], "verifier.off_policy_delta: in fp32, with one optimiser step"),
    (["--selfverify.reward=alphabeta"], "did you mean alpha_beta?"),
    (["--generator.init=scratch"], "generator.init must be one of"),
    (["--generator.judge=endpoint"], "is for pretrained models: set pretrained.folder"),
    (["--world.labelled_chain=3"], "world.labelled_chain must be a list of 2 numbers"),
    (["--noise.jump=65"], "noise.jump must be from 0 to 1"),
    (["--model.n_heads=3"], "n_heads"),
    (["--model.vocab_size=100"], "model.vocab_size is not a setting"),
    (["--model.dim=1048576", "--model.ffn_dim=1048576", "--model.n_layers=999"], "GB; this machine has"),
    (["--parallel.shard=full"], "shard"),
    (["--parallel.precision=fp16"], 'precision must be one of "fp32", "bf16", "auto"'),
    (["--domain=geometry"], "domain must be one of"),
    (["--domain=my_module:MyDomain"], "my_module"),
    (["--domain=natural"], "domain natural starts from a pretrained model: set pretrained.folder"),
    (["--expert=human"], "expert must be one of"),
    (["--coldstart.expert=grades"], "coldstart.expert must be one of"),
    (["--coldstart.expert=new.jsonl"], "coldstart.expert 'new.jsonl': no such file"),
    (["--coldstart.expert=nobody"], "there would be no score to train a verifier on"),
    (["--coldstart.expert=endpoint"], 'coldstart.expert = "endpoint" is for pretrained models'),
    (["--expert=labels.jsonl"], "expert 'labels.jsonl': no such file"),
    (["--expert=grades"], "domain 'order' has none"),
    (["--pretrained.folder=models/nowhere"], "models/nowhere' is no model folder: config.json is missing"),
    ([*NARROW, "--autolabel.problems=90000"], "too few different problems"),
    ([*NARROW, "--world.hard_problems=900000"], "too few different problems"),
    (["--from=runs/nowhere"], "--from=runs/nowhere is not the folder of a run"),
    (["--track=wanbd"], "--track must be one of wandb, trackio, found 'wanbd'"),
    (["--dry-run", "--hardware=h1000"], "h1000"),
    (["--dir=notes.txt"], "--dir=notes.txt is a file, not a run folder"),
    (["--config=configs/nowhere.toml"], "cannot read configuration configs/nowhere.toml: No such file"),
    (["--config=runs"], "cannot read configuration runs"),
    (["--config=notes.txt"], "notes.txt: not valid"),
    (["--config=half.toml"], "half.toml: not valid"),
    (["--config=typo.toml"], "typo.toml: unknown field verfier; did you mean verifier?"),
    (["--config=word.toml"], "word.toml: verifier.steps must be int, found 'many'"),
    (["--config=list.json"], "list.json: the file must be a section"),
    (["--dir="], "--dir= has no value; leave it out for the default"),
    (["--from="], "--from= has no value"),
    (["--dir=runs/a/lap2/verifier2"], "is the folder of a phase: give that of its run, --dir=runs/a$"),
    (["--dryrun"], "cannot read argument '--dryrun': did you mean --dry-run?"),
    (["--ranks=2"], "--ranks and --hardware are for --dry-run; torchrun --nproc-per-node=N"),
    (["--hardware=h100-80gb"], "--ranks and --hardware are for --dry-run"),
    (["--lr=1e-4"], "unknown field lr; did you mean grpo.lr or base.lr?"),
    (["--steps=10"], "did you mean grpo.steps or base.steps?"),
    (["--verifier.steps="], "the command line: verifier.steps must be int, found ''"),
    (["--verifier=10"], "the command line: verifier must be a section, found 10"),
    (["--laps=2.5"], "laps must be int, found 2.5"),
    (["--model.dim=65", "--model.n_heads=5"], "dim 65 must be a multiple of n_heads 5"),
    (["--coldstart.subset=0"], "coldstart.subset = 0: there would be no proof to train a verifier on"),
]
OTHERS = [
    ("sample.py", ["porve"], "invalid choice: 'porve'"),
    ("sample.py", [], "the following arguments are required: mode; see --help"),
    ("sample.py", ["prove"], "run `python train.py --phase=generator --dir="),
    ("sample.py", ["prove", "--n=0"], "--n must be from 1 to 100,000, found 0"),
    ("sample.py", ["prove", "--phase=generater"], "did you mean generator?"),
    ("sample.py", ["verify", PROBLEM, "--dir=runs/a"], "verify needs --proof, or a file of items"),
    ("sample.py", ["meta", PROBLEM, "--proof=x", "--dir=runs/a"], "meta needs --critique, or a file"),
    (
        "sample.py",
        ["refine", "--problem=Is 2 prime?", "--dir=runs/a"],
        "not of the world's form: 'Is 2 prime",
    ),
    ("sample.py", ["refine", "--rounds=0", "--dir=runs/a"], "--rounds must be from 1"),
    ("sample.py", ["refine", "--temperature=0", "--dir=runs/a"], "did you mean .*eval.temperature"),
    ("sample.py", ["refine", "--problem=", "--dir=runs/a"], "--problem= has no value"),
    ("sample.py", ["refine", PROBLEM, "--proof=x", "--dir=runs/a"], "--proof is not for refine"),
    ("sample.py", ["verify", "--proof=x", "--dir=runs/a"], "verify needs --problem, or a file of items"),
    (
        "sample.py",
        ["refine", PROBLEM, "--data=good.jsonl", "--dir=runs/a"],
        "give --problem, or a file of items .--data., not both",
    ),
    ("sample.py", ["refine", PROBLEM, "--output=runs", "--dir=runs/a"], "cannot write runs: it is a folder"),
    (
        "sample.py",
        ["verify", "--data=good.jsonl", "--output=good.jsonl", "--dir=runs/a"],
        "cannot write good.jsonl: it is the file that is read; name another",
    ),
    (
        "sample.py",
        ["refine", PROBLEM, "--output=notes.txt/a.jsonl", "--dir=runs/a"],
        "notes.txt is no folder that you may write to",
    ),
    (
        "autolabel.py",
        ["--proofs=good.jsonl", "--out=good.jsonl", "--dir=runs/a"],
        "cannot write good.jsonl: it is the file that is read",
    ),
    ("sample.py", ["verify", "--data=nowhere.jsonl", "--dir=runs/a"], "nowhere.jsonl"),
    ("sample.py", ["verify", "--data=empty.jsonl", "--dir=runs/a"], "empty.jsonl"),
    ("sample.py", ["verify", "--data=broken.jsonl", "--dir=runs/a"], "broken.jsonl, line 2: not valid JSON"),
    ("sample.py", ["verify", "--data=other.jsonl", "--dir=runs/a"], "other.jsonl.*problem"),
    ("sample.py", ["verify", "--data=scores.jsonl", "--dir=runs/a"], "scores.jsonl"),
    ("sample.py", ["verify", "--data=hello.jsonl", "--dir=runs/a"], "not of the world's form: 'hello'"),
    ("sample.py", ["refine", PROBLEM, "--dir=runs/a", "--lap=9"], "lap9/selfverify is missing"),
    ("sample.py", ["prove", PROBLEM, "--endpoint=localhost:8080", "--model=x"], "http"),
    ("sample.py", ["prove", PROBLEM, "--endpoint=http://127.0.0.1:1/v1"], "endpoint.model|--model"),
    ("sample.py", ["prove", PROBLEM, "--model=models/nowhere"], "models/nowhere"),
    ("autolabel.py", [], "run `python train.py --phase=selfverify --dir="),
    ("autolabel.py", ["--proofs=empty.jsonl", "--dir=runs/a"], "empty.jsonl holds no proofs"),
    ("autolabel.py", ["--k=3", "--dir=runs/a"], "unknown field k; did you mean autolabel.k?"),
    ("autolabel.py", ["--lap=0"], "--lap=0: this run has laps 1 to 2"),
    ("autolabel.py", ["--calibrate=nan"], "--calibrate must be"),
    ("autolabel.py", ["--calibrate=97", "--dir=runs/a"], "--calibrate must be from 0 to 1, found 97"),
    ("autolabel.py", ["--proofs=nowhere.jsonl", "--dir=runs/a"], "cannot read nowhere.jsonl"),
    ("autolabel.py", ["--endpoint=http://127.0.0.1:1/v1", "--model=x"], "which proofs. Give --data=FILE"),
    ("nanov2.pages.report", [], "the following arguments are required: RUN; see --help"),
    ("nanov2.pages.report", ["runs/nowhere"], "runs/nowhere is no folder: give the folder of a run"),
    ("nanov2.pages.report", ["runs/a", "--compare=runs/b"], "runs/b is no folder"),
    ("nanov2.pages.watch", ["runs/nowhere"], "run.json is missing"),
    ("nanov2.pages.watch", ["--every=x", "runs/a"], "invalid float value: 'x'"),
    ("nanov2.pages.watch", ["--every=-1", "runs/a"], "--every must be from 0.1 to 3600 seconds, found -1"),
    ("nanov2.pages.expert_page", ["runs/nowhere"], "runs/nowhere"),
    ("nanov2.hub.hf", ["models/nowhere"], "write hf show FOLDER, or hf check FOLDER"),
    ("nanov2.hub.hf", ["show", "models/nowhere"], "models/nowhere"),
    ("nanov2", ["raport", "runs/a"], "no command 'raport'; one of train, sample"),
]
MISTAKES = [("train.py", args, told) for args, told in TRAIN] + OTHERS


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("script, args, told", MISTAKES, ids=[" ".join([s, *a])[:60] for s, a, _ in MISTAKES])
def test_a_mistake_is_one_line_and_makes_nothing(folder, monkeypatch, capsys, script, args, told):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = {p for p in folder.rglob("*") if "lock" not in p.name and p.name != "owner"}
    if script == "train.py":
        given = [a.split("=")[0] for a in args]
        args = [*args, *([] if "--dir" in given else ["--dir=new"]), *(SMALL if "=" in args[-1] else [])]
        args += [] if "--config" in given else ["--config=configs/smoke.toml"]
    elif script.endswith(".py") and not any(a.startswith(("--dir", "--endpoint", "--model")) for a in args):
        args = [*args, "--dir=new"]
    begin = time.process_time()
    code = ends(script, *args)
    said = capsys.readouterr().err.strip().splitlines()
    assert code not in (0, None) and said, said
    assert "error: " in said[-1] and len(said) <= 3  # before it, perhaps: which folder, ranks, precision
    assert sum("error: " in line for line in said) == 1
    assert re.search(told, said[-1]), said[-1]
    assert {p for p in folder.rglob("*") if "lock" not in p.name and p.name != "owner"} == before
    assert time.process_time() - begin < 5


def test_fifty_mistakes_and_more_are_tried():
    assert len(MISTAKES) >= 50
