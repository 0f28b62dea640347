"""The phases of the cycle in their order: what train.py, the plan, the report and sample.py know of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nanov2.errors import InputError
from nanov2.run.config import Config
from nanov2.settings import choose


@dataclass(frozen=True)
class PhaseInfo:
    """One phase. Its settings are the section of its name; in laps 2, 3, … lap_NAME, where there is one."""

    name: str
    title: str
    laps: Literal["first", "later", "all"] = "all"
    needs: tuple[str, ...] = ()  # phases of the same lap that it reads, or of the lap that has them
    follows: bool = False  # it reads those of the lap before
    trains: Literal["", "verify", "meta", "prove"] = ""  # the task that GRPO trains in it
    answers: tuple[str, ...] = field(default=())  # modes of sample.py that its model is for
    limits: tuple[str, ...] = ()  # sections whose max_tokens bound what is written in it, beside its own
    like: tuple[str, ...] = ()  # phases whose steps take much the same time

    def belongs_to(self, lap: int) -> bool:
        return self.laps == "all" or (lap == 1) == (self.laps == "first")


CYCLE = (
    PhaseInfo(
        "base",
        "Base: supervised training on imperfect demonstrations",
        "first",
        limits=("generator", "verifier", "meta", "selfverify"),
    ),
    PhaseInfo(
        "coldstart",
        "1A: weak proofs, refined, drawn and scored by the expert (𝒟v)",
        "first",
        ("base",),
        limits=("selfverify",),
    ),
    PhaseInfo("verifier", "1B: verifier πφ v1, R_format · R_score", "first", ("coldstart",), trains="verify"),
    PhaseInfo(
        "aware",
        "1B distilled: v1 learns what it says with the reference solution in view",
        "first",
        ("verifier",),
        limits=("verifier",),
    ),
    PhaseInfo(
        "meta",
        "1C: graded critiques (𝒟mv) and the meta-verifier πη",
        "first",
        ("verifier",),
        trains="meta",
        limits=("verifier",),
        like=("verifier",),
    ),
    PhaseInfo(
        "consolidate",
        "Base of a later lap: rejection fine-tuning on the best samples of the lap before",
        "later",
        ("autolabel",),
        follows=True,
        limits=("generator",),
        like=("base",),
    ),
    PhaseInfo(
        "renew_meta",
        "1C again: πη learns from the last verifier's critiques of new proofs (𝒟mv grows)",
        "later",
        ("autolabel",),
        follows=True,
        trains="meta",
        limits=("verifier", "meta"),
        like=("meta",),
    ),
    PhaseInfo(
        "verifier2",
        "1D: enhanced verifier πφ v2, R_format · R_score · R_meta",
        needs=("meta",),
        trains="verify",
        answers=("verify", "meta"),
        limits=("verifier", "meta"),
        like=("verifier",),
    ),
    PhaseInfo(
        "generator",
        "2: generator πθ, the verifier's score as its only reward",
        needs=("verifier2",),
        trains="prove",
        answers=("prove",),
        limits=("generator", "verifier", "meta"),
    ),
    PhaseInfo(
        "selfverify",
        "3: self-verifying generator, draft → critique → revision → final",
        needs=("generator",),
        trains="prove",
        answers=("refine", "search"),
        limits=("selfverify", "verifier", "meta"),
    ),
    PhaseInfo(
        "autolabel",
        "4: labels by consensus for new hard proofs",
        needs=("selfverify",),
        limits=("selfverify", "verifier", "meta"),
    ),
)
PHASES = {phase.name: phase for phase in CYCLE}


def title(phase: str, lap: int) -> str:
    """A phase's title in a lap: the verifier of lap 2 is v3."""
    return PHASES[phase].title.replace("πφ v2", f"πφ v{lap + 1}")


def heading(phase: str, lap: int) -> str:
    """The title, and from lap 2 on the lap."""
    return title(phase, lap) + (f", lap {lap}" if lap > 1 else "")


def flywheel(config: Config) -> list[tuple[str, int]]:
    """(phase, lap) of everything that the flywheel does."""
    return planned(config.to_dict())


def planned(settings: dict) -> list[tuple[str, int]]:
    """The same, by the settings that run.json keeps: what an older run does not know, it does not do."""
    later = (settings.get(f"lap_{phase}") or {} for phase in ("verifier2", "generator", "selfverify"))
    left_out = {name for name in ("renew_meta", "aware") if not (settings.get(name) or {}).get("on")}
    left_out |= set() if any(s.get("init") == "consolidated" for s in later) else {"consolidate"}
    return [
        (phase.name, lap)
        for lap in range(1, min(int(settings.get("laps", 1)), 1000) + 1)  # run.json may be spoilt
        for phase in CYCLE
        if phase.belongs_to(lap) and phase.name not in left_out
    ]


def planned_steps(settings: dict, phase: str, lap: int) -> int | None:
    """How many steps a phase is to do, by the same settings; None where it has no steps."""
    later = f"lap_{phase}"
    section = settings.get(later if lap > 1 and later in settings else phase)
    steps = section.get("steps") if isinstance(section, dict) else None
    return steps if isinstance(steps, int) else None


def check_name(phase: str, *others: str) -> None:
    """InputError, with the nearest name, where there is no such phase."""
    try:
        choose(phase, (*PHASES, *others), "--phase")
    except ValueError as e:
        raise InputError(f"unknown phase: {e}") from e


def needed(phase: str, lap: int, config: Config) -> list[tuple[str, int]]:
    """(phase, lap) of what has to be done before a phase."""
    info, needs = PHASES[phase], PHASES[phase].needs
    if phase == "generator":
        needs = (getattr(config, config.section(phase, lap)).judged_by,)
    return [(name, 1 if PHASES[name].laps == "first" else lap - info.follows) for name in needs]


def check_request(phase: str, lap: int, config: Config) -> None:
    """InputError where there is no such phase, or where it does not belong to the lap."""
    check_name(phase, "flywheel")
    if phase == "flywheel":
        if lap != 1:
            raise InputError(f"--lap={lap}: the flywheel does all laps; name one phase with --phase=NAME")
        return
    info = PHASES[phase]
    if not 1 <= lap <= config.laps:
        raise InputError(f"--lap={lap}: this run has laps 1 to {config.laps} (laps = {config.laps})")
    if not info.belongs_to(lap):
        where = "to lap 1 alone: leave out --lap" if lap > 1 else "to later laps: give --lap=2 or more"
        raise InputError(f"--phase={phase} --lap={lap}: {phase} belongs {where}")
