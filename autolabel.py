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
import math
import time
from collections import Counter
from pathlib import Path

from nanov2.distributed.ranks import derive_seed
from nanov2.domains.natural import real
from nanov2.method import figures as ev
from nanov2.method.consensus import (
    Assessed,
    Rule,
    assess_adaptively,
    calibrate,
    consensus,
    doubt,
    majority,
    mean_label,
    single,
)
from nanov2.method.consolidation import best_samples
from nanov2.method.judges import meta_judge, verifier_judge
from nanov2.method.tasks import true_scores
from nanov2.records import ProofRecord, read_jsonl, write_jsonl
from nanov2.rl.logs import print_table
from nanov2.run.cli import Config, InputError, open_folder, parse, script
from nanov2.run.folder import Run
from nanov2.run.phase import generator_proofs, graded


def label_proofs(run: Run, lap: int, proofs: list[ProofRecord], settle: bool = True) -> list[list[Assessed]]:
    """The assessed critiques of each proof, split over the ranks: n, or fewer with `settle`."""
    c = run.config.autolabel
    clean, k = (c.clean, c.k) if settle else (c.n, c.n)
    model, tokenizer = run.load("verifier2", lap)
    language, verifier, meta = run.domain.language(tokenizer), run.config.verifier, run.config.meta

    def judges(first: int, count: int):
        options = {"temperature": c.temperature, "seed": derive_seed(run.config.seed, "labels", lap, first)}
        options["batch_rows"] = verifier.batch_rows
        return (
            verifier_judge(model, language, samples=count, max_tokens=verifier.max_tokens, **options),
            meta_judge(model, language, samples=c.m, max_tokens=meta.max_tokens, **options),
        )

    mine = run.ranks.mine([(r.problem, r.proof) for r in proofs])
    return run.ranks.gather(assess_adaptively(mine, judges, c.n, c.chunk, k, clean))


def autolabel(run: Run, lap: int) -> None:
    """Label new hard proofs, merge them into 𝒟v, and measure the labels against the exact expert."""
    if run.is_done("autolabel", lap):
        return
    begin, c, folder = time.time(), run.config, run.folder("autolabel", lap)
    run.need("selfverify", lap)
    new = run.domain.new_problems(lap, c.autolabel.problems)
    proofs = generator_proofs(run, lap, new, c.autolabel.proofs, folder / "trajectories.jsonl", f"lap{lap}")
    held_out = generator_proofs(run, lap, run.hardest, 2, folder / "held_out_trajectories.jsonl", f"lap{lap}")
    critiques = label_proofs(run, lap, proofs)
    rule = Rule.of(c.autolabel)
    labels = [rule(cs) for cs in critiques]
    clear = [
        dataclasses.replace(r, score=s, label=provenance(c, cs))
        for r, s, cs in zip(proofs, labels, critiques, strict=True)
        if s is not None
    ]
    doubtful = [(doubt(cs), r, cs) for r, s, cs in zip(proofs, labels, critiques, strict=True) if s is None]
    doubtful.sort(key=lambda x: -x[0])
    unclear = [dataclasses.replace(r, label=provenance(c, cs)) for _, r, cs in doubtful]
    earlier = run.records(*(("autolabel", lap - 1) if lap > 1 else ("coldstart", 1)), "dv.jsonl", ProofRecord)
    run.write("autolabel", lap, "labels.jsonl", clear)
    sure = [cs for s, cs in zip(labels, critiques, strict=True) if s is not None]
    run.write("autolabel", lap, "best.jsonl", best_samples(clear, sure))
    run.write("autolabel", lap, "unclear.jsonl", unclear)
    run.write("autolabel", lap, "dv.jsonl", merge(earlier, clear if c.autolabel.grow else []))
    run.write("autolabel", lap, "held_out_proofs.jsonl", graded(run, held_out))

    letter = [consensus(cs, c.autolabel.k, "right") for cs in critiques]
    truth = true_scores(run.domain.truth, proofs, [r.proof for r in proofs])
    after = measure_labels(truth, proofs, labels, letter, critiques)
    samples = [
        {
            "problem": r.problem,
            "proof": r.proof,
            "critique": next((x.critique for x in cs if x.issue), cs[0].critique),
            "label": "unclear" if s is None else s,
            "note": f"scores {[x.score for x in cs]}, valid issues {sum(x.issue and x.valid for x in cs)}",
        }
        | ev.shown_truth(t)
        for r, s, cs, t in zip(proofs, labels, critiques, truth, strict=True)
    ]
    counts = Counter("unclear" if s is None else s for s in labels)
    table = {
        "title": "Labels given",
        "columns": ["label", "proofs"],
        "rows": [[str(k), counts[k]] for k in (0.0, 0.5, 1.0, "unclear")],
    }
    run.write("autolabel", lap, "eval.json", {"before": {}, "after": after, "curve": []})
    run.write("autolabel", lap, "samples.jsonl", ev.pick(samples, c.eval.shown))
    note = f"n = {c.autolabel.n} critiques, m = {c.autolabel.m} meta-assessments, k = {c.autolabel.k}"
    run.finish("autolabel", lap, time.time() - begin, tables=[table], notes=[note])
    if run.ranks.main:
        print_table(f"autolabel, lap {lap}", {}, after)


def provenance(config: Config, critiques: list[Assessed]) -> str:
    """Where a label comes from, for the record: rule, critiques drawn, issues confirmed."""
    c = config.autolabel
    settings = f" n={c.n} m={c.m} k={c.k}" if c.rule == "consensus" else ""
    issues = [x for x in critiques if x.issue]
    scores = " ".join("?" if x.score is None else f"{x.score:g}" for x in critiques)
    confirmed = f"{sum(x.valid for x in issues)} of {len(issues)} issues confirmed"
    return f"{c.rule}{settings}: scores {scores}; {confirmed}"


def merge(earlier: list[ProofRecord], new: list[ProofRecord]) -> list[ProofRecord]:
    """Both, each (problem, proof) once; the earlier stays: an expert's score is never replaced."""
    merged = {(r.problem, r.proof): r for r in [*new, *earlier]}
    order = dict.fromkeys((r.problem, r.proof) for r in [*earlier, *new])
    return [merged[key] for key in order]


def measure_labels(
    truth: list[float], proofs: list[ProofRecord], labels: list, letter: list, critiques: list[list]
) -> ev.Metrics:
    """Coverage, and agreement with the truth, beside the letter of the paper and simpler rules."""
    clusters = [r.problem for r in proofs]

    def agreement(given: list) -> list[float]:
        pairs = zip(given, truth, strict=True)
        return [math.nan if g is None or math.isnan(t) else float(g == t) for g, t in pairs]

    columns = {
        "label_coverage": [float(s is not None) for s in labels],
        "label_agreement": agreement(labels),
        "letter_agreement": agreement(letter),
        "single_critique_agreement": agreement([single(cs) for cs in critiques]),
        "mean_agreement": agreement([mean_label(cs) for cs in critiques]),
        "majority_agreement": agreement([majority(cs) for cs in critiques]),
        "true_score": truth,
        "critiques_per_proof": [float(len(cs)) for cs in critiques],
    }
    return ev.figures(columns, "hard", clusters)


def label_file(run: Run, lap: int, source: Path, out: Path) -> None:
    """Label the proofs of a JSONL file (problem, proof a line)."""
    proofs = read_jsonl(source, ProofRecord)
    critiques = label_proofs(run, lap, proofs)
    c = run.config.autolabel
    labels = [Rule.of(c)(cs) for cs in critiques]
    if run.ranks.main:
        labelled = (
            dataclasses.replace(r, score=s, label=provenance(run.config, cs))
            for r, s, cs in zip(proofs, labels, critiques, strict=True)
        )
        write_jsonl(out, labelled)
        unclear = labels.count(None)
        print(f"{out}: {len(labels) - unclear} proofs labelled, {unclear} unclear (score null)")


def calibration(run: Run, lap: int, wanted: float, source: str) -> None:
    """Print which n, m, k reach a precision, on proofs whose score is known."""
    if not 0 < wanted <= 1:
        raise InputError(f"--calibrate wants a precision above 0 and up to 1, found {wanted}")
    if source:
        proofs = read_jsonl(source, ProofRecord)
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
    print(f"{len(proofs)} proofs; settings with precision of at least {wanted:g}, widest coverage first")
    print("   n  m  k  max_doubt  precision (low)  coverage  critiques a proof, adaptive")
    for c in found[:12]:
        rates = f"{c.precision:.3f} ({c.low:.3f})    {c.coverage:.3f}     {c.critiques:.2f}"
        print(f"  {c.n:2} {c.m:2} {c.k:2}  {min(c.max_doubt, 9.0):9.2f}  {rates}")
    if not found:
        print("  none: raise --autolabel.n, or ask for less")


FLAGS = {
    "lap": (1, "whose generator writes and whose verifier labels"),
    "proofs": ("", "JSONL file of proofs (problem, proof) to label instead of the generator's"),
    "calibrate": (0.0, "a wanted precision: print the settings that reach it, label nothing"),
    "out": ("labels.jsonl", "where their labels go"),
}


def main() -> None:
    args, overrides = parse(__doc__, real.FLAGS | FLAGS)
    if config := real.wanted(args, overrides):
        return real.autolabel_main(config, args)
    run = open_folder(args, overrides)
    run.lock()
    if args.calibrate:
        calibration(run, args.lap, args.calibrate, args.proofs)
    elif args.proofs:
        label_file(run, args.lap, Path(args.proofs), Path(args.out))
    else:
        autolabel(run, args.lap)


if __name__ == "__main__":
    script(main)
