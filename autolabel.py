"""Step 4 of the cycle: label new hard proofs by consensus, and add them to 𝒟v.

    python autolabel.py --dir=runs/proofworld                      # after train.py --phase=selfverify
    torchrun --nproc-per-node=2 autolabel.py --dir=runs/proofworld --autolabel.n=16
    python autolabel.py --dir=runs/proofworld --proofs=mine.jsonl --out=labels.jsonl   # one's own proofs
    python autolabel.py --dir=runs/proofworld --calibrate=0.99     # which n, m, k give that precision?
    python autolabel.py --data=proofs.jsonl --endpoint=http://127.0.0.1:8080/v1 --model=NAME

The generator πθ v2 writes proofs of new hard problems; the verifier πφ v2 writes n critiques of each and
looks m times at each that reports an issue (nanov2/method/consensus.py has the rule). Clear labels go to
autolabel/labels.jsonl and, with the earlier 𝒟v, to autolabel/dv.jsonl; the unclear ones to
autolabel/unclear.jsonl, for a person to score, those first whose label would teach most. `--calibrate`
measures the rule on proofs whose score is known: those of --proofs, or the generator's of the validation
problems, scored by the exact expert. With --endpoint or --model, a chat model labels natural-language proofs.
"""

from nanov2.distributed.startup import prepare

if __name__ == "__main__":
    prepare()

import dataclasses
import time
from collections import Counter
from pathlib import Path

from nanov2.distributed.ranks import derive_seed
from nanov2.domains.data import load, split
from nanov2.domains.language import Language
from nanov2.hub.author import Author
from nanov2.hub.local import OwnAuthor
from nanov2.method.agreement import measure, report
from nanov2.method.config import AutolabelConfig
from nanov2.method.consensus import Assessed, Rule, assess_adaptively, calibrate, settled, wilson
from nanov2.method.judges import Judge
from nanov2.method.labels import (
    clear,
    joining,
    label_all,
    label_samples,
    label_table,
    measure_labels,
    merge,
    unclear,
)
from nanov2.method.samples import pick
from nanov2.model.rollout import Sampling
from nanov2.pages import legend
from nanov2.records import ProofRecord, read_jsonl, write_jsonl
from nanov2.rl.logs import print_table
from nanov2.run.authors import FLAGS as CHAT_FLAGS
from nanov2.run.authors import chat_cast, wanted
from nanov2.run.cli import InputError, check_output, open_folder, parse, read_config, script
from nanov2.run.config import Config
from nanov2.run.folder import Run
from nanov2.run.phase import generator_proofs, graded
from nanov2.run.phases import check_request, heading
from nanov2.settings import Within


def label_proofs(run: Run, lap: int, proofs: list[ProofRecord], settle: bool = True) -> list[list[Assessed]]:
    """The assessed critiques of each proof by the lap's verifier, split over the ranks: n, or fewer with
    `settle`."""
    c, verifier = run.config.autolabel, run.config.verifier
    model, tokenizer = run.load("verifier2", lap)
    language, seed = run.domain.language(tokenizer), derive_seed(run.config.seed, "labels", lap)
    critic, meta = (
        OwnAuthor(model, language, Sampling(c.temperature, limit, verifier.batch_rows), seed)
        for limit in (verifier.max_tokens, run.config.meta.max_tokens)
    )
    mine = run.ranks.mine([(r.problem, r.proof) for r in proofs])
    found = assess_proofs(critic, meta, language, c, mine, settle=settle, bar=run.ranks.main)
    return run.ranks.gather(found)


def assess_proofs(
    verifier: Author,
    meta: Author,
    language: Language,
    config: AutolabelConfig,
    pairs: list[tuple[str, str]],
    states: Counter | None = None,
    settle: bool = True,
    bar: bool = False,
) -> list[list[Assessed]]:
    """n critiques of each (problem, proof), or with `settle` fewer, each that reports an issue looked at m
    times. `states` counts what became of the critiques."""

    def judges(first: int, count: int) -> tuple[Judge, Judge]:
        # Other critiques of one proof differ, so their assessments need no further numbers
        critic = Judge(verifier, language, language.claimed_score, count, first, states)
        return critic, Judge(meta, language, language.claimed_quality, config.m)

    def enough(critiques: list[Assessed]) -> bool:
        return settle and settled(critiques, config.k, config.clean, Rule.of(config), config.test)

    return assess_adaptively(pairs, judges, config.n, config.chunk, enough, bar)


def autolabel(run: Run, lap: int, place: str = "") -> None:
    """Label new hard proofs, merge them into 𝒟v, and measure the labels against the truth. `place`: in the
    plan, as the terminal has it."""
    if run.is_done("autolabel", lap):
        return
    begin, c, truth = time.time(), run.config.autolabel, run.domain.truth
    folder = run.folder("autolabel", lap)
    run.need("selfverify", lap)
    run.begin("autolabel", lap)
    problems = run.domain.new_problems(lap, c.problems)
    proofs = generator_proofs(run, lap, problems, c.proofs, folder / "trajectories.jsonl", f"lap{lap}")
    held_out = generator_proofs(run, lap, run.hardest, 2, folder / "held_out_trajectories.jsonl", f"lap{lap}")
    labelled = label_all(proofs, label_proofs(run, lap, proofs), c)
    sure = clear(labelled)
    labels = [x.record(c) for x in sure]
    new = [x.record(c) for x in joining(labelled, c.most)] if c.grow else []
    earlier = run.records(*(("autolabel", lap - 1) if lap > 1 else ("coldstart", 1)), "dv.jsonl", ProofRecord)
    files = {
        "labels.jsonl": labels,
        "best.jsonl": [sample for x in sure if (sample := x.best())],
        "unclear.jsonl": [x.record(c) for x in unclear(labelled)],
        "dv.jsonl": merge(earlier, new),
        "held_out_proofs.jsonl": graded(run, held_out),
        "samples.jsonl": pick(label_samples(labelled, truth), run.config.eval.shown),
    }
    for name, records in files.items():
        run.write("autolabel", lap, name, records)
    after = measure_labels(labelled, truth, c)
    run.write("autolabel", lap, "eval.json", {"before": {}, "after": after, "curve": []})
    note = f"n = {c.n} critiques, m = {c.m} meta-assessments, k = {c.k}"
    run.finish("autolabel", lap, time.time() - begin, tables=[label_table(labelled)], notes=[note])
    if run.ranks.main:
        print_table(
            f"{place}{heading('autolabel', lap)} ({time.time() - begin:.0f} s)", {}, after, legend.title
        )


def read_proofs(path: Path) -> list[ProofRecord]:
    """InputError where there is none."""
    if proofs := read_jsonl(path, ProofRecord):
        return proofs
    raise InputError(f"{path} holds no proofs: write a line of JSON, problem and proof, for each")


def label_file(run: Run, lap: int, source: Path, out: Path) -> None:
    """Label the proofs of a JSONL file (problem, proof a line)."""
    check_output(str(out), str(source))
    proofs, c = read_proofs(source), run.config.autolabel
    labelled = label_all(proofs, label_proofs(run, lap, proofs), c)
    if run.ranks.main:
        write_jsonl(out, [x.record(c) for x in labelled])
        print(f"{out}: {len(clear(labelled))} proofs labelled, {len(unclear(labelled))} unclear (score null)")


def calibration(run: Run, lap: int, wanted: float, source: str) -> None:
    """Print which n, m, k reach a precision, on proofs whose score is known."""
    if source:
        proofs = read_proofs(Path(source))
    elif not run.domain.truth:
        raise InputError("calibration needs proofs whose score is known: give --proofs=FILE")
    else:
        path = run.folder("autolabel", lap) / "calibration_trajectories.jsonl"
        drawn = generator_proofs(run, lap, run.problems["validation_hard"], 4, path, f"lap{lap}")
        proofs = graded(run, drawn)
    if missing := sum(r.score is None for r in proofs):
        raise InputError(f"{missing} of {len(proofs)} proofs have no score: calibration needs one for each")
    critiques = label_proofs(run, lap, proofs, settle=False)
    found = calibrate(critiques, [r.score for r in proofs], wanted, run.config.autolabel.disputed)
    if not run.ranks.main:
        return
    print(
        f"{len(proofs)} proofs; settings whose precision is at least {wanted:g} at the lower end of its 95% "
        "interval, widest coverage first"
    )
    print("   n  m  k  max_doubt  precision (low)  coverage  critiques a proof, adaptive")
    for c in found[:12]:
        rates = f"{c.precision:.3f} ({c.low:.3f})    {c.coverage:.3f}     {c.critiques:.2f}"
        print(f"  {c.n:2} {c.m:2} {c.k:2}  {min(c.max_doubt, 9.0):9.2f}  {rates}")
    if not found:
        best = wilson(1.0, len(proofs))
        print(
            f"  none (of {len(proofs)} labels, all right, that end would be {best:.3f}): give more proofs, "
            "raise --autolabel.n, or ask for less"
        )


def label_by_chat(config: Config, args) -> None:
    """Label the proofs of --data by a chat model; figures where some have a grade."""
    if not (path := args.data or args.proofs or config.data.path):
        raise InputError("which proofs? Give --data=FILE")
    check_output(args.out, path)
    c, states = config.autolabel, Counter()
    cast = chat_cast(config, args.out)
    loaded = load(dataclasses.replace(config.data, path=path), ProofRecord)
    print(f"{path}: {loaded.report()}")
    proofs = loaded.records
    if config.data.held_out:
        _, proofs = split(proofs, config.data.held_out, config.seed)
    pairs = [(r.problem, r.proof) for r in proofs]
    critiques = assess_proofs(cast.verifier, cast.meta, cast.language, c, pairs, states)
    labelled, out = label_all(proofs, critiques, c), Path(args.out)
    graded = [(r, cs) for r, cs in zip(proofs, critiques, strict=True) if r.score is not None]
    who = f", {config.endpoint.model}"
    rest = out.with_name(f"{out.stem}.unclear.jsonl")
    for name, part in ((out, clear(labelled)), (rest, unclear(labelled))):
        records = [x.record(c) for x in part]
        write_jsonl(name, [dataclasses.replace(r, label=r.label + who) for r in records])
    if graded:
        print(report(measure([r for r, _ in graded], [cs for _, cs in graded], Rule.of(c))))
    print("answers: " + ", ".join(f"{n} {state}" for state, n in states.items()))
    drawn = sum(map(len, critiques)) / len(critiques)
    counts = f"{len(clear(labelled))} proofs labelled, {len(unclear(labelled))} unclear"
    print(f"{out}: {counts}, {drawn:.1f} critiques a proof")


FLAGS = {
    "lap": (1, "whose generator writes and whose verifier labels"),
    "proofs": ("", "JSONL file of proofs (problem, proof) to label instead of the generator's"),
    "calibrate": (0.0, "a wanted precision: print the settings that reach it, label nothing", Within(0, 1)),
    "out": ("labels.jsonl", "where their labels go"),
}


def main() -> None:
    args, overrides = parse(__doc__, CHAT_FLAGS | FLAGS)
    if config := wanted(args, overrides):
        return label_by_chat(config, args)
    check_request("autolabel", args.lap, read_config(args, overrides))
    run = open_folder(args, overrides)
    if args.calibrate:
        run.need("selfverify", args.lap)
        if not args.proofs:  # with proofs given it only reads
            run.lock()
        calibration(run, args.lap, args.calibrate, args.proofs)
    elif args.proofs:
        label_file(run, args.lap, Path(args.proofs), Path(args.out))
    else:
        run.need("selfverify", args.lap)
        run.claim()
        autolabel(run, args.lap)


if __name__ == "__main__":
    script(main)
