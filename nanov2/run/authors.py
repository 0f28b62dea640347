"""Who answers in sample.py and autolabel.py: a run's models, a model folder's, or an endpoint's."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from nanov2.distributed.ranks import Ranks, derive_seed
from nanov2.domains.data import load, split
from nanov2.domains.domain import Domain, knows_truth, open_domain
from nanov2.domains.language import Language
from nanov2.domains.marks import spoken
from nanov2.errors import InputError
from nanov2.hub.author import Author
from nanov2.hub.endpoint import Endpoint
from nanov2.hub.local import FolderAuthor, OwnAuthor, fingerprint
from nanov2.model.rollout import Sampling
from nanov2.records import CritiqueRecord, ProblemRecord, ProofRecord, read_json
from nanov2.run.cli import WEIGHTS, open_folder, shipped
from nanov2.run.config import Config, load_config
from nanov2.run.folder import Run
from nanov2.run.phases import check_name

MODEL = {  # of a run, by what is to be done
    "prove": "generator",
    "verify": "verifier2",
    "meta": "verifier2",
    "refine": "selfverify",
    "search": "selfverify",
}
KIND = {"verify": ProofRecord, "meta": CritiqueRecord} | dict.fromkeys(
    ("prove", "refine", "search"), ProblemRecord
)
FLAGS = {
    "endpoint": ("", "base URL of an OpenAI-compatible endpoint that answers instead of a run's model"),
    "model": ("", "the model's name there; without --endpoint: a folder with a Hugging Face model"),
    "data": ("", "JSONL or CSV file of items; [data] says what its columns and grades are"),
}


@dataclass(frozen=True)
class Cast:
    """The authors for the three roles, what they speak, and where the items' truth is known."""

    config: Config
    prover: Author
    verifier: Author
    meta: Author
    language: Language
    domain: Domain | None = None
    ranks: Ranks = dataclasses.field(default_factory=Ranks)
    one_critique: str = ""  # how often full marks of a single critique are wrong, where that was measured

    def covers(self, problem: str, proof: str, critique: str) -> bool:
        """Whether a critique has a finding about each step, where the domain can tell steps and findings."""
        if self.domain is None:
            return True
        view = self.domain.view(CritiqueRecord(problem, proof, critique))
        if not view.findings and not self.domain.truth:
            return True  # a domain that cannot tell findings
        return {view.steps[i] for i, *_ in view.findings if i is not None} >= set(view.steps)


def wanted(args: argparse.Namespace, overrides: list[str]) -> Config | None:
    """The configuration of a chat model that is to answer, or None where a run's own models are meant."""
    given = {"endpoint.url": args.endpoint, "endpoint.model": args.model}
    overrides = [*overrides, *(f"{name}={json.dumps(value)}" for name, value in given.items() if value)]
    if not args.config and not any(o.lstrip("-").startswith("endpoint.") for o in overrides):
        return None
    config = load_config(shipped(Path(args.config)) if args.config else None, overrides)
    if not (config.endpoint.url or config.endpoint.model):
        return None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("an endpoint is asked by one process: start with python, not with torchrun")
    return config


def chat_cast(config: Config, output: str, draw: int = 0) -> Cast:
    """One chat model in all roles, read leniently. Its answers are kept beside `output`, if there is one."""
    seed = derive_seed(draw) % 2**31 if draw else config.endpoint.seed
    cache = config.endpoint.cache or (f"{output}.answers.jsonl" if output else "")
    options = dataclasses.replace(config.endpoint, seed=seed, cache=cache)
    speaks = spoken(config.expert)
    author = Endpoint(options) if options.url else FolderAuthor(options, speaks)
    # A pretrained model can be asked about a world whose truth is known; other domains are data files here.
    domain = open_domain(config) if knows_truth(config) else None
    language = author.language if isinstance(author, FolderAuthor) else speaks()
    return Cast(config, author, author, author, language, domain)


def run_cast(args: argparse.Namespace, overrides: list[str]) -> Cast:
    """The newest lap's models of a run, or those of --phase and --lap."""
    phase = args.phase or MODEL[args.mode]
    check_name(phase)
    run = open_folder(args, overrides, models=True)
    if run.dir == WEIGHTS and not args.phase and not run.is_done(phase):
        phase = "selfverify"  # it proves too
    prover = _author(run, phase, args.lap, run.config.selfverify.max_tokens, args)
    if args.mode == "search":
        verifier = _author(run, "verifier2", args.lap, run.config.verifier.max_tokens, args)
        meta = _limited(verifier, run.config.meta.max_tokens)
    else:
        meta = verifier = _limited(prover, run.config.verifier.max_tokens)
    return Cast(
        run.config,
        prover,
        verifier,
        meta,
        prover.language,
        run.domain,
        run.ranks,
        _one_critique(run, args.lap),
    )


def _author(run: Run, phase: str, lap: int, limit: int, args: argparse.Namespace) -> OwnAuthor[Language]:
    lap = lap or newest_lap(run, phase)
    model, tokenizer = run.load(phase, lap)
    searches = args.mode == "search"
    temperature = run.config.search.temperature if searches else run.config.eval.temperature
    how = Sampling(temperature, limit, run.config.verifier.batch_rows)
    told = {"weights": run.ranks.from_main(fingerprint(run.folder(phase, lap)) if run.ranks.main else "")}
    return OwnAuthor(model, run.domain.language(tokenizer), how, derive_seed(args.draw, phase), told)


def _limited(author: OwnAuthor[Language], limit: int) -> OwnAuthor[Language]:
    """The same author with another limit of its answers."""
    how = dataclasses.replace(author.how, max_tokens=limit)
    return OwnAuthor(author.model, author.language, how, author.seed, author.identity)


def newest_lap(run: Run, phase: str) -> int:
    """The last lap in which the phase is done."""
    laps = [lap for lap in range(1, run.config.laps + 1) if run.is_done(phase, lap)]
    return max(laps, default=1)


def _one_critique(run: Run, lap: int) -> str:
    """What is known of the verifier's full marks: how often those of one critique were wrong on held-out
    proofs."""
    path = run.folder("selfverify", lap or newest_lap(run, "selfverify")) / "eval.json"
    try:
        figures = read_json(path)["after"]
    except (InputError, KeyError):  # no such figures is no error here
        return ""
    found = figures.get("hard/false_accept_rate") or figures.get("labelled/false_accept_rate")
    if not found or not found["n"]:
        return ""
    return (
        f"of {found['n']} held-out proofs that one critique passed, {found['value']:.1%} were wrong "
        f"({found['low']:.1%} to {found['high']:.1%})"
    )


def check_items(mode: str, args: argparse.Namespace) -> None:
    """InputError where the flags that make up an item are not those of the mode, or are not all there."""
    names = [f.name for f in dataclasses.fields(KIND[mode])]
    given = [name for name in ("problem", "proof", "critique") if getattr(args, name)]
    wanted = [name for name in ("problem", "proof", "critique") if name in names]
    if stray := [name for name in given if name not in wanted]:
        raise InputError(f"--{stray[0]} is not for {mode}")
    if given and (args.data or args.input):
        raise InputError(f"give --{given[0]}, or a file of items (--data), not both")
    if given and (missing := [name for name in wanted if name not in given]):
        raise InputError(f"{mode} needs --{missing[0]}, or a file of items (--data)")


def read_items(cast: Cast, mode: str, args: argparse.Namespace) -> list:
    """What to work on: the items of a file, one item from the flags, or a problem that no model has seen.

    Of a file with data.held_out, the held-out part.
    """
    kind, data = KIND[mode], cast.config.data
    path = args.data or getattr(args, "input", "") or data.path
    names = [f.name for f in dataclasses.fields(kind) if f.name in ("problem", "proof", "critique")]
    given = {name: getattr(args, name, "") for name in names}
    if given["problem"]:
        items = [kind(**given)]
    elif path:
        loaded = load(dataclasses.replace(data, path=path), kind)
        print(f"{path}: {loaded.report()}")
        items = loaded.records
        if data.held_out:
            _, items = split(items, data.held_out, cast.config.seed)
            print(f"held out by problem: {len(items)}")
        items = items[: getattr(args, "limit", 0) or None]
    elif len(names) == 1 and cast.domain is not None:
        draw, end = args.draw, args.draw + max(args.limit, 1)
        held_out = cast.domain.problems().get("held_out", [])
        new = held_out if end <= len(held_out) else cast.domain.new_problems(1, end)
        items = [ProblemRecord(p.problem) for p in new[draw:end]]
    else:
        raise InputError(f"no --{names[0]}, and no --data=FILE")
    own = isinstance(cast.prover, OwnAuthor) and not isinstance(cast.prover, FolderAuthor)
    if own and cast.domain and cast.domain.truth:  # the run's models know nothing else
        for i, item in enumerate(items, 1):
            score = cast.domain.truth.score(item.problem, "")
            if score != score:
                raise InputError(f"problem {i} is not of the world's form: {item.problem[:80]!r}")
    return items
