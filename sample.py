"""Use any trained model of a run: prove, verify, meta-verify, refine.

    python sample.py prove  --problem="given c < t ; c = f ; f < q ; show c < q" --n=4
    python sample.py verify --problem="…" --proof="c = f < q qed" --n=4
    python sample.py meta   --problem="…" --proof="…" --critique="c = f = ok … strict \\boxed{1}"
    python sample.py refine --problem="…" --rounds=8          # until no issue is found
    python sample.py search --input=problems.jsonl --output=proofs.jsonl   # at high compute, see [search]
    python sample.py verify --input=proofs.jsonl --output=critiques.jsonl

    python sample.py verify --data=proofs.jsonl --endpoint=http://127.0.0.1:8080/v1 --model=NAME --n=4
    python sample.py refine --problem="Prove that …" --model=models/smollm2   # natural language, locally
    python sample.py search --data=problems.jsonl --output=proofs.jsonl --endpoint=URL --model=NAME

Models come from --dir (default runs/proofworld): the newest lap's generator for prove, its
self-verifying generator for refine, its verifier for verify and meta; --phase and --lap choose another.
Without --problem or --input a new random problem is made. Each answer is shown with the exact expert's
opinion of it. With --endpoint or --model, a chat model proves, verifies, meta-verifies, refines or searches
in natural language instead; a graded --data file gives figures.
"""

from nanov2.distributed.startup import prepare

prepare()

from pathlib import Path

from nanov2.distributed.ranks import derive_rng, derive_seed
from nanov2.domains.natural import real
from nanov2.domains.order.domain import OrderLanguage
from nanov2.domains.order.world import grade_critique, grade_proof, make_problem, parse_problem
from nanov2.errors import InputError
from nanov2.method.figures import sample_trajectories, sampling, trajectory_records
from nanov2.method.search import RunVoices, Search
from nanov2.method.tasks import SelfVerifyTask
from nanov2.model.rollout import Sampling
from nanov2.model.sampler import sample
from nanov2.records import CritiqueRecord, ProblemRecord, ProofRecord, read_jsonl, write_jsonl
from nanov2.run.cli import open_folder, parse, script
from nanov2.run.folder import Run
from nanov2.run.phases import check_name
from nanov2.settings import Within

MODEL = {
    "prove": "generator",
    "verify": "verifier2",
    "meta": "verifier2",
    "refine": "selfverify",
    "search": "selfverify",
}
KIND = {"verify": ProofRecord, "meta": CritiqueRecord} | dict.fromkeys(
    ("prove", "refine", "search"), ProblemRecord
)


def read_items(run: Run, args) -> list:
    """What to work on: the lines of --input, or one item from the flags."""
    if args.input:
        items = read_jsonl(args.input, KIND[args.mode])
    else:
        problem = args.problem or make_problem(derive_rng(args.draw), run.config.world.hard).text
        fields = {"problem": problem}
        for name in ("proof", "critique"):
            if name in KIND[args.mode].__dataclass_fields__:
                if not getattr(args, name):
                    raise InputError(f"{args.mode} needs --{name} (or --input with a field {name!r} a line)")
                fields[name] = getattr(args, name)
        items = [KIND[args.mode](**fields)]
    for i, item in enumerate(items, 1):
        if parse_problem(item.problem) is None:
            raise InputError(
                f"problem {i} is not of the world's form: {item.problem[:80]!r}; "
                "write `given a < b ; b = c ; show a < c` with single letters"
            )
    return items


def newest_lap(run: Run, phase: str) -> int:
    """The last lap in which the phase is done."""
    laps = [lap for lap in range(1, run.config.laps + 1) if run.is_done(phase, lap)]
    return max(laps, default=1)


def answers(run: Run, mode: str, model, prompts: OrderLanguage, items: list, args) -> list[dict]:
    """n answers to each item, each with the exact expert's opinion."""
    question = {
        "prove": lambda r: prompts.prove(r.problem),
        "verify": lambda r: prompts.verify(r.problem, r.proof),
        "meta": lambda r: prompts.meta(r.problem, r.proof, r.critique),
    }[mode]
    seeds = [derive_seed(args.draw, "sample", i) for i in range(len(items))]
    how = sampling(run.config, run.config.verifier)
    rollouts = sample(model, prompts.tokenizer, [prompts.ids(question(r)) for r in items], args.n, how, seeds)
    rows = []
    for rollout in rollouts:
        item, text = items[rollout.group], prompts.answer(rollout)
        row = {"problem": item.problem} | {
            k: getattr(item, k) for k in ("proof", "critique") if hasattr(item, k)
        }
        problem, shown = parse_problem(item.problem), text or "(cut off)"
        if mode == "prove":
            row |= {"proof": shown, "true_score": grade_proof(problem, shown)}
        elif mode == "verify":
            grade = grade_critique(problem, item.proof, shown)
            row |= {
                "critique": shown,
                "score": prompts.claimed_score(text),
                "true_score": grade_proof(problem, item.proof),
            }
            row |= {"true_quality": grade.quality, "invented_issues": grade.invented}
        else:
            row |= {"meta": shown, "quality": prompts.claimed_quality(text)}
            row |= {"true_quality": grade_critique(problem, item.proof, item.critique).quality}
        rows.append(row)
    return rows


def refine(run: Run, model, prompts: OrderLanguage, items: list, args) -> list[dict]:
    """Draft, critique, revise until no issue is found, --rounds proofs are written, or --budget is spent."""
    task = SelfVerifyTask(prompts, None, max_turns=2 * args.rounds, budget=args.budget)
    items = [i for i in items for _ in range(args.n)]
    limit = run.config.selfverify.max_tokens
    turns = sample_trajectories(model, task, items, run.config, derive_seed(args.draw), run.ranks, limit)
    rows = []
    for record in trajectory_records(items, turns):
        proofs = [text for task_name, text in record.turns if task_name == "prove"]
        problem = parse_problem(record.problem)
        rows.append(
            {
                "problem": record.problem,
                "turns": record.turns,
                "proof": proofs[-1],
                "true_scores": [grade_proof(problem, p) for p in proofs],
            }
        )
    return rows


def search(run: Run, model, prompts: OrderLanguage, items: list, args) -> list[dict]:
    """The best proof found for each problem, with its critiques. Goes on where it was stopped."""
    verifier, _ = run.load("verifier2", args.lap or newest_lap(run, "verifier2"))
    limit = run.config.selfverify.max_tokens
    seed = derive_seed(args.draw, "search")
    how = Sampling(run.config.search.temperature, limit)
    hunt = Search(RunVoices(model, verifier, verifier, prompts, how, seed), run.config.search)
    rank = f".{run.ranks.rank}" if run.ranks.size > 1 else ""
    state = Path(f"{args.output}.state{rank}.jsonl") if args.output else None
    pools = run.ranks.gather(hunt.run(run.ranks.mine([i.problem for i in items]), state))
    found = [pool.found(run.config.search.n) for pool in pools]
    return [f | {"true_score": grade_proof(parse_problem(f["problem"]), f["proof"])} for f in found]


def main() -> None:
    modes = {"mode": {"choices": list(MODEL), "help": "what to do"}}
    flags = {
        "problem": ("", "the problem's text"),
        "proof": ("", "the proof to verify"),
        "critique": ("", "the critique to judge"),
        "input": ("", "JSONL file of items instead"),
        "output": ("", "JSONL file for the answers instead of the terminal"),
        "phase": ("", "phase whose model to use instead of the default"),
        "lap": (0, "lap of that phase (0: the newest)"),
        "n": (1, "answers per item", Within(1, 100_000)),
        "rounds": (8, "refine: at most so many proofs in a row", Within(1, 1000)),
        "budget": (0, "refine: tokens of a trajectory after which no revision begins (0: no limit)"),
        "limit": (0, "only so many items of --data (0: all)"),
        "draw": (0, "seed of the samples, and of the random problem"),
    }
    args, overrides = parse(__doc__, real.FLAGS | flags, modes)
    if config := real.wanted(args, overrides):
        return real.sample_main(config, args)
    phase = args.phase or MODEL[args.mode]
    check_name(phase)
    run = open_folder(args, overrides)
    lap = args.lap or newest_lap(run, phase)
    if run.config.pretrained.folder:
        folder = run.folder(phase, lap)
        raise InputError(f"the run's models are chat models: use one with --model={folder}")
    model, tokenizer = run.load(phase, lap)
    prompts, items = OrderLanguage(tokenizer, strict=True), read_items(run, args)
    if args.mode == "refine":
        rows = refine(run, model, prompts, items, args)
    elif args.mode == "search":
        rows = search(run, model, prompts, items, args)
    else:
        rows = answers(run, args.mode, model, prompts, items, args)
    if not run.ranks.main:
        return
    if args.output:
        write_jsonl(Path(args.output), rows)
        print(f"{args.output}: {len(rows)} answers")
    else:
        for row in rows:
            print()
            for name, value in row.items():
                if name == "turns":
                    for task, text in value:
                        print(f"  {task:>14}  {text}")
                elif name == "critiques":
                    for c in value:
                        print(f"{'weight':>16}  {c['weight']:.2f}  {c['critique']}")
                else:
                    print(f"{name:>16}  {value}")


if __name__ == "__main__":
    script(main)
