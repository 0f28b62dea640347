"""What every figure means, in plain words: read by the report, the terminal view and the terminal's tables.

A figure's full name is "SET/FIGURE@T0": the set of held-out items, the figure, and the temperature that was
sampled at (none: the evaluation's own, 1). `explain` says all of it and never fails: an unknown figure is
shown under its own name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

HIGHER, LOWER, NEITHER = 1, -1, 0  # which way is better


@dataclass(frozen=True)
class Entry:
    """A figure's title, one sentence that says how it is counted, and which way is better."""

    title: str
    sentence: str
    better: int = NEITHER


FIGURES = {
    # the verifier
    "score_accuracy": Entry(
        "score accuracy", "Share of critiques whose score is the true score of the proof.", HIGHER
    ),
    "score_error": Entry(
        "score error", "Mean distance of a critique's score from the proof's true score.", LOWER
    ),
    "unparsed_rate": Entry(
        "critiques without a score", "Share of critiques that end without a readable score.", LOWER
    ),
    "critique_quality": Entry(
        "critique quality",
        "The expert's mean grade of the critiques: 1 where all claimed issues are real and the score "
        "follows from them, 0.5 where some are invented, 0 where all are.",
        HIGHER,
    ),
    "critique_exact": Entry("faultless critiques", "Share of critiques with quality 1.", HIGHER),
    "invented_issue_rate": Entry(
        "critiques with an invented issue",
        "Share of critiques that claim an issue where there is none.",
        LOWER,
    ),
    "missed_issue_rate": Entry(
        "critiques with a missed issue", "Share of critiques that pass over an issue of the proof.", LOWER
    ),
    "invented_in_failed_rate": Entry(
        "invented issues in failed proofs",
        "Of critiques of proofs with true score 0, the share that also claims an issue where there is none: "
        "the score cannot show it.",
        LOWER,
    ),
    # the meta-verifier
    "meta_accuracy": Entry(
        "quality accuracy", "Share of meta-critiques that give a critique the expert's quality.", HIGHER
    ),
    "meta_balanced_accuracy": Entry(
        "balanced quality accuracy",
        "Quality accuracy averaged over the qualities 0, 0.5 and 1: a constant answer has a third.",
        HIGHER,
    ),
    "meta_constant_accuracy": Entry(
        "accuracy of a constant answer", "Quality accuracy of always answering the commonest quality."
    ),
    "meta_unparsed_rate": Entry(
        "meta-critiques without a quality", "Share of meta-critiques without a readable quality.", LOWER
    ),
    # the generator
    "true_score": Entry("true score", "The expert's mean score of the proofs, each sampled once.", HIGHER),
    "full_proof_rate": Entry("faultless proofs", "Share of proofs with true score 1.", HIGHER),
    "proof_format_rate": Entry("proofs in form", "Share of answers that have the form of a proof.", HIGHER),
    "verifier_reward": Entry(
        "verifier's score", "Mean score that the frozen verifier, the reward, gives to the same proofs."
    ),
    "hacking_gap": Entry(
        "reward − truth",
        "How far the verifier's score lies above the true score: what the generator gains by fooling it.",
        LOWER,
    ),
    "false_accept_rate": Entry(
        "undeserved full marks",
        "Of the proofs to which the verifier gives full marks (in a generator's figures the frozen one that "
        "rewards it), the share whose true score is less.",
        LOWER,
    ),
    # the self-verifying generator
    "draft_true_score": Entry("true score of the draft", "The expert's mean score of first proofs.", HIGHER),
    "final_true_score": Entry(
        "true score of the final proof",
        "The expert's mean score of the proofs that the generator hands in after its own revisions.",
        HIGHER,
    ),
    "revision_gain": Entry(
        "final − draft", "What revising gained: true score of the final proof less that of the draft.", HIGHER
    ),
    "final_full_proof_rate": Entry(
        "faultless final proofs", "Share of final proofs with true score 1.", HIGHER
    ),
    "rounds": Entry("proofs a problem", "Mean number of proofs written: the draft and its revisions."),
    "self_score_error": Entry(
        "error of the self-score", "Mean distance of the author's own score from the true score.", LOWER
    ),
    "self_score_mean": Entry("self-score", "Mean score that authors give their own last proof."),
    "self_false_accept_rate": Entry(
        "undeserved full marks of one's own",
        "Of the last proofs to which their author gives full marks, the share whose true score is less.",
        LOWER,
    ),
    # labels by consensus
    "label_agreement": Entry(
        "label agreement", "Share of labels, among the proofs that got one, that are the true score.", HIGHER
    ),
    "label_false_accept_rate": Entry(
        "labels of 1 that are wrong", "Of the proofs labelled 1, the share whose true score is less.", LOWER
    ),
    "label_coverage": Entry("label coverage", "Share of proofs that got a label.", HIGHER),
    "single_critique_agreement": Entry(
        "agreement of one critique",
        "The first critique's score in place of the label, on the proofs that have a label.",
        HIGHER,
    ),
    "mean_agreement": Entry(
        "agreement of the mean",
        "The mean of the critiques' scores, rounded, in place of the label, on the proofs that have one.",
        HIGHER,
    ),
    "constant_agreement": Entry(
        "agreement of a constant answer",
        "Always answering the commonest score, on the proofs that have a label.",
    ),
    "single_critique_agreement_on_all": Entry(
        "agreement of one critique, all proofs",
        "Share of all proofs whose first critique gives the true score.",
        HIGHER,
    ),
    "mean_agreement_on_all": Entry(
        "agreement of the mean, all proofs",
        "Share of all proofs of which the mean of the critiques' scores, rounded, is the true score.",
        HIGHER,
    ),
    "majority_agreement_on_all": Entry(
        "agreement of the majority, all proofs",
        "Share of all proofs whose majority of critiques gives the true score.",
        HIGHER,
    ),
    "letter_agreement_on_all": Entry(
        "agreement of the paper's rule, all proofs",
        "Share, of all proofs that the paper's rule labels, whose label is the true score.",
        HIGHER,
    ),
    "letter_agreement": Entry(
        "agreement of the paper's rule",
        "Share of labels by the rule as the paper's text states it that are the true score.",
        HIGHER,
    ),
    "letter_coverage": Entry(
        "coverage of the paper's rule", "Share of proofs labelled by the rule as the paper states it.", HIGHER
    ),
    "majority_agreement": Entry(
        "agreement of the majority",
        "The majority of the critiques' scores in place of the label, on the proofs that have a label.",
        HIGHER,
    ),
    "gate_agreement": Entry(
        "agreement of the gated mean",
        "The mean of the critiques' scores, those that claim issues weighed by their meta-scores, rounded, "
        "in place of the label, on the proofs that have one.",
        HIGHER,
    ),
    "worst_agreement": Entry(
        "agreement of the pessimistic minimum",
        "The lowest of the critiques' scores in place of the label, on the proofs that have one.",
        HIGHER,
    ),
    "gate_agreement_on_all": Entry(
        "agreement of the gated mean, all proofs",
        "Share of all proofs of which the mean weighed by meta-scores, rounded, is the true score.",
        HIGHER,
    ),
    "worst_agreement_on_all": Entry(
        "agreement of the pessimistic minimum, all proofs",
        "Share of all proofs whose lowest critique gives the true score.",
        HIGHER,
    ),
    "critiques_per_proof": Entry("critiques a proof", "Mean number of critiques drawn for a label."),
    # the base
    "loss": Entry("loss", "What the optimiser lowers: cross entropy of the base, GRPO's surrogate later."),
    "token_accuracy": Entry("token accuracy", "Share of held-out tokens that are the likeliest.", HIGHER),
    # a training step
    "reward": Entry("reward", "Mean reward of the step's samples, as training sees it."),
    "truth": Entry("true score", "The expert's mean score of the step's samples; training never sees it."),
    "truth_quality": Entry("true quality", "The expert's mean grade of the step's critiques."),
    "truth_draft": Entry("true score of drafts", "The expert's mean score of the step's first proofs."),
    "meta": Entry("meta score", "Mean quality that the frozen meta-verifier gives to the step's critiques."),
    "false_accept": Entry(
        "undeserved full marks",
        "Of the step's proofs with full marks (of a generator: its reward), the share whose true score is "
        "less; no generator's training sees it.",
        LOWER,
    ),
    "self_false_accept": Entry(
        "undeserved full marks of one's own",
        "Of the step's last proofs to which their author gives full marks, the share whose true score is "
        "less; training never sees it.",
        LOWER,
    ),
    "finding": Entry(
        "right findings", "Share of the findings of the step's critiques that are the expert's.", HIGHER
    ),
    "judge_spread": Entry(
        "disagreement of looks",
        "Mean distance between the highest and the lowest score that the judge's looks give to one proof.",
    ),
    "self_gap": Entry(
        "self-internalisation gap",
        "The generator's own score of its proofs less the judge's: below 0 the judge pays for what the "
        "generator itself does not believe.",
    ),
    "length": Entry("length", "Mean number of tokens that an answer was sampled with."),
    "judge_tokens": Entry("tokens of judges", "Tokens that the frozen judges sampled in the step."),
    "entropy": Entry(
        "entropy", "Mean uncertainty of the next token, in nats; near 0 the samples are all alike."
    ),
    "cut": Entry("cut off", "Share of answers that reached the token limit.", LOWER),
    "grad_norm": Entry("gradient norm", "Length of the gradient before clipping."),
    "kl": Entry("KL", "Distance from the reference model, in nats a token."),
    "clip_fraction": Entry("clipped tokens", "Share of tokens whose gradient the ratio's bounds cut off."),
    "off_policy_rate": Entry(
        "off-policy answers", "Share of answers that `off_policy_delta` left out of the loss."
    ),
}
SETS = {
    "labelled": "labelled difficulty",
    "hard": "harder problems",
    "hardest": "hardest problems",
    "held_out": "held-out",
    "held_out_hard": "held-out, harder",
    "held_out_hardest": "held-out, hardest",
    "validation": "validation",
    "validation_hard": "validation, harder",
}
AT = re.compile(r"(.*)@T(\d+(?:\.\d+)?)", re.S)
PASS_AT = re.compile(r"pass(?:@|_at_|_)(\d{1,6})")


@dataclass(frozen=True)
class Name:
    """A figure's name taken apart."""

    set: str  # "" where there is none
    figure: str
    rest: str = ""  # what follows the figure, such as a family of problems
    temperature: str = "1"

    @property
    def plain(self) -> str:
        """Without the temperature: what stands beside it at another one."""
        return "/".join(p for p in (self.set, self.figure, self.rest) if p)


def parse_name(name: str) -> Name:
    """ "hard/true_score/sets@T0" → set, figure, rest, temperature."""
    at = AT.fullmatch(name)
    plain, temperature = (at[1], f"{float(at[2]):g}") if at else (name, "1")
    parts = plain.split("/")
    known = next((i for i, p in enumerate(parts) if p in FIGURES or PASS_AT.fullmatch(p)), len(parts) - 1)
    return Name("/".join(parts[:known]), parts[known], "/".join(parts[known + 1 :]), temperature)


def entry(figure: str) -> Entry:
    """What a figure without its set means; its own name, with spaces, where nothing is known of it."""
    if at_k := PASS_AT.fullmatch(figure):
        k = at_k[1]
        return Entry(f"pass@{k}", f"Share of problems solved by at least one of {k} proofs.", HIGHER)
    return FIGURES.get(figure) or Entry(figure.replace("_", " "), "")


def title(name: str) -> str:
    """A full name in plain words."""
    return explain(name).title


def explain(name: str, with_temperature: bool = True) -> Entry:
    """The entry of a full name, its set (and temperature, where it is not 1) said in the title."""
    parts = parse_name(name)
    found = entry(parts.figure)
    where = [
        SETS.get(parts.set, parts.set.replace("_", " ")),
        parts.rest.replace("/", ", ").replace("_", " "),
    ]
    if with_temperature and parts.temperature != "1":
        where.append(f"T = {parts.temperature}")
    said = ", ".join(w for w in where if w)
    return Entry(f"{found.title} ({said})" if said else found.title, found.sentence, found.better)
