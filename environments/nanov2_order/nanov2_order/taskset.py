"""The order world of nanov2 as a taskset of verifiers v1: proofs, critiques, meta-critiques, graded exactly.

    vf-run nanov2-order -n 20 --env.taskset.about verify      # and any trainer that takes such tasksets

`prove` pays the true score of the proof, in {0, 0.5, 1}; `verify` pays R_format · R_score of a critique, and
`meta` the same of a critique's critique. Invented issues are a metric, and cost nothing: in the paper only a
meta-verifier sees them, and a verifier trained on this reward alone shows why. Everything is made from a
seed, so no model can have read it before, and no judge is asked.
"""

from typing import Literal

import verifiers.v1 as vf

from nanov2.domains.domain import open_domain
from nanov2.domains.language import Language
from nanov2.domains.order.domain import OrderTruth
from nanov2.method.rewards import R_verifier
from nanov2.method.trust import draw_cases, guided
from nanov2.records import CritiqueRecord, ProofRecord
from nanov2.run.config import load_config

TRUTH, LANGUAGE = OrderTruth(), Language()
FORM = (
    "Here the proof is one chain of the given facts, from the left side of the goal to its right side, each "
    "term once, such as `Indeed, $a < b = c$.` An equation may be read both ways round."
)


class OrderData(vf.TaskData):
    about: str
    problem: str
    proof: str = ""  # what verify and meta are about
    critique: str = ""
    truth: float = 1.0  # the proof's score for verify, the critique's quality for meta


class OrderTask(vf.Task[OrderData]):
    @vf.stop
    async def one_turn(self, trace: vf.Trace) -> bool:
        return trace.num_turns >= 1

    @vf.reward
    async def graded(self, trace: vf.Trace) -> float:
        data, answer = self.data, trace.last_reply
        if data.about == "prove":
            proof = LANGUAGE.read_proof(answer)
            return TRUTH.score(data.problem, proof.text) if proof else 0.0
        read = LANGUAGE.claimed_score if data.about == "verify" else LANGUAGE.claimed_quality
        claimed = read(answer)
        return R_verifier(claimed, claimed or 0.0, data.truth)

    @vf.metric
    async def invented_issues(self, trace: vf.Trace) -> float:
        if self.data.about != "verify" or not trace.last_reply:
            return 0.0
        grade = TRUTH.examine(self.data.problem, self.data.proof, trace.last_reply)
        return float(grade.invented) if grade else 0.0


class OrderConfig(vf.TasksetConfig):
    about: Literal["prove", "verify", "meta"] = "prove"
    tasks: int = 1000
    seed: int = 0


class OrderTaskset(vf.Taskset[OrderTask, OrderConfig]):
    def load(self) -> list[OrderTask]:
        return [
            OrderTask(OrderData(idx=i, about=self.config.about, prompt=prompt, **given), self.config.task)
            for i, (prompt, given) in enumerate(questions(self.config))
        ]


def questions(config: OrderConfig) -> list[tuple[str, dict]]:
    """Each task's prompt, and what it is graded by."""
    settings = load_config(
        None, [f"seed={config.seed}", f"world.problems={config.tasks}", "world.hard_problems=1"]
    )
    domain, rows = open_domain(settings), []
    if config.about == "prove":
        problems = [r.problem for r in domain.problems()["train"]]
        return [(f"{LANGUAGE.prove(p)[0]['content']}\n\n{FORM}", {"problem": p}) for p in problems]
    proofs, critiques = draw_cases(domain, config.tasks, config.seed)
    for c in proofs if config.about == "verify" else critiques:
        given = {"problem": c.problem, "proof": c.proof}
        if config.about == "verify":
            asked, record = LANGUAGE.verify(**given), ProofRecord(**given)
            given |= {"truth": c.score}
        else:
            given |= {"critique": c.critique}
            asked, record = LANGUAGE.meta(**given), CritiqueRecord(**given)
            given |= {"truth": c.quality}
        rows.append((guided(asked, domain.view(record))[0]["content"], given))
    return rows
