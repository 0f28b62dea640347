"""The rollout engines of a run: one for what is trained, and while a phase lasts one for its judge."""

from __future__ import annotations

from nanov2.domains.language import Language
from nanov2.errors import InputError
from nanov2.hub import hf
from nanov2.hub.chat import ChatTokenizer
from nanov2.hub.engine import Engine, open_engine
from nanov2.hub.local import TokenAuthor, fingerprint
from nanov2.model.rollout import Sampling, Served
from nanov2.run.folder import Run

POLICY = "policy"
_open: dict[str, Engine] = {}  # POLICY, and of frozen judges the hash of their weights


def rollout_engine(run: Run) -> Engine | None:
    """What samples the model in training; None where this process does."""
    config = run.config.rollout
    return None if config.engine == "own" else _opened(POLICY, run, config.urls)


def served_author(run: Run, phase: str, lap: int, how: Sampling, seed: int) -> TokenAuthor[Language]:
    """A finished phase's model as an author that an engine serves. Every answer states the hash of the
    weights that wrote it, and is refused where they are not the phase's."""
    urls, folder = run.config.rollout.judge_urls, run.model_folder(phase, lap)
    weights = run.ranks.from_main(fingerprint(folder)[:32] if run.ranks.main else "")
    if urls and _open.keys() - {POLICY, weights}:
        raise InputError(
            "the servers of rollout.judge_urls serve one model, and this phase asks two (judge_rule gate): "
            'take another rule, judge = "run", or --rollout.start=true without rollout.judge_urls'
        )
    engine = _opened(weights, run, urls)
    if engine.version != weights:
        engine.load_folder(folder, weights)
    served = Served(hf.to_config(folder / "config.json"), engine)
    language = run.domain.language(ChatTokenizer.load(folder))
    return TokenAuthor(served, language, how, seed, {"weights": weights})


def close_engines(judges_only: bool = False) -> None:
    """Stop the servers that were started, and remove the weights that were written for them."""
    for name in [name for name in _open if name != POLICY or not judges_only]:
        _open.pop(name).close()


def _opened(name: str, run: Run, urls: tuple[str, ...]) -> Engine:
    if name not in _open:
        log = run.dir / f"engine-{name[:8]}.log"
        _open[name] = open_engine(run.config.rollout, urls, run.ranks, run.model_folder("base"), log)
    return _open[name]
