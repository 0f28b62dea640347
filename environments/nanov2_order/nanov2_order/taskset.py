"""nanov2's worlds as a taskset of verifiers v1: proofs, critiques, meta-critiques, graded exactly.

    vf-run nanov2-order -n 20 --env.taskset.about verify      # and any trainer that takes such tasksets
    vf-run nanov2-order -n 20 --env.taskset.domain integers   # any domain whose truth is known

`prove` pays the true score of the proof, in {0, 0.5, 1}; `verify` pays R_format · R_score of a critique, and
`meta` the same of a critique's critique. Invented issues are a metric, and cost nothing: in the paper only a
meta-verifier sees them, and a verifier trained on this reward alone shows why. Everything is made from a
seed, so no model can have read it before, and no judge is asked.
"""

from typing import Literal

import verifiers.v1 as vf

from nanov2.distributed.ranks import derive_rng
from nanov2.domains.domain import Domain, domain_class, knows_truth, open_domain
from nanov2.domains.language import Language
from nanov2.errors import InputError
from nanov2.method.rewards import R_verifier
from nanov2.method.trust import draw_cases, guided
from nanov2.records import CritiqueRecord, ProofRecord
from nanov2.run.config import load_config

LANGUAGE = Language()
FORMS = {
    "order": "Here the proof is one chain of the given facts, from the left side of the goal to its right "
    "side, each term once, such as `Indeed, $a < b = c$.` An equation may be read both ways round."
}


class WorldData(vf.TaskData):
    domain: str
    about: str
    problem: str
    proof: str = ""  # what verify and meta are about
    critique: str = ""
    truth: float = 1.0  # the proof's score for verify, the critique's quality for meta


class WorldTask(vf.Task[WorldData]):
    @vf.stop
    async def one_turn(self, trace: vf.Trace) -> bool:
        return trace.num_turns >= 1

    @vf.reward
    async def graded(self, trace: vf.Trace) -> float:
        data, answer = self.data, trace.last_reply
        if data.about == "prove":
            proof = LANGUAGE.read_proof(answer)
            return domain_class(data.domain).truth.score(data.problem, proof.text) if proof else 0.0
        read = LANGUAGE.claimed_score if data.about == "verify" else LANGUAGE.claimed_quality
        claimed = read(answer)
        return R_verifier(claimed, claimed or 0.0, data.truth)

    @vf.metric
    async def invented_issues(self, trace: vf.Trace) -> float:
        if self.data.about != "verify" or not trace.last_reply:
            return 0.0
        truth = domain_class(self.data.domain).truth
        grade = truth.examine(self.data.problem, self.data.proof, trace.last_reply)
        return float(grade.invented) if grade else 0.0


class WorldConfig(vf.TasksetConfig):
    domain: str = "order"  # "integers", or my_module:MyDomain with a truth
    about: Literal["prove", "verify", "meta"] = "prove"
    tasks: int = 1000
    seed: int = 0


class WorldTaskset(vf.Taskset[WorldTask, WorldConfig]):
    def load(self) -> list[WorldTask]:
        about = {"domain": self.config.domain, "about": self.config.about}
        return [
            WorldTask(WorldData(idx=i, prompt=prompt, **about, **given), self.config.task)
            for i, (prompt, given) in enumerate(questions(self.config))
        ]


def questions(config: WorldConfig) -> list[tuple[str, dict]]:
    """Each task's prompt, and what it is graded by."""
    sizes = [f"world.problems={config.tasks}", "world.hard_problems=1"]
    settings = load_config(None, [f"domain={config.domain}", f"seed={config.seed}", *sizes])
    if not knows_truth(settings):
        raise InputError(f"nobody knows the truth of domain {config.domain!r}: take order or integers")
    domain, rows = open_domain(settings), []
    if config.about == "prove":
        problems = [r.problem for r in domain.problems()["train"]]
        form = FORMS.get(config.domain) or example(domain, config.seed)
        asked = [(f"{LANGUAGE.prove(p)[0]['content']}\n\n{form}", {"problem": p}) for p in problems]
        return asked[: config.tasks]
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


def example(domain: Domain, seed: int) -> str:
    """How proofs of a world are written, by one of its demonstrations: the truth reads no other form."""
    for i in range(1000):
        shown = domain.demonstration(derive_rng(seed, "example", i), 1.0)
        proof = LANGUAGE.read_proof(dict(reversed(shown.turns)).get("prove"))
        if proof and domain.truth.score(shown.problem, proof.text) == 1:
            return f"Write the proof like this one, of another problem:\n\n{shown.problem}\n\n{proof.text}"
    raise InputError("no demonstration of this domain is a right proof")
