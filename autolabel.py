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

import time

from nanov2.distributed.ranks import derive_seed
from nanov2.method.consensus import Assessed, assess_adaptively
from nanov2.method.judges import meta_judge, verifier_judge
from nanov2.records import ProofRecord
from nanov2.run.folder import Run


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
    """Label new hard proofs, merge them into 𝒟v, and measure the labels against the truth."""
    if run.is_done("autolabel", lap):
        return
    begin, c, truth = time.time(), run.config.autolabel, run.domain.truth
    folder = run.folder("autolabel", lap)
