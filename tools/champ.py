"""CHAMP's solutions with the first wrong step that people marked, as lines that nanov2 reads.

    pip install -e ".[champ]"
    python tools/champ.py champ.jsonl [v0.json]

CHAMP (Mao, Kim and Zhou, 2024; the package champ-dataset, MIT) has 270 competition problems and 540 solutions
by language models. Each line holds problem, proof, score (1: no wrong step, else 0) and `wrong`, the first
wrong step word for word; configs/champ.toml reads them. The second argument is another file of that form.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from nanov2.errors import InputError
from nanov2.records import ProofRecord, read_json, write_jsonl


def installed() -> Path:
    """The data of the installed package, which is not imported: the file alone is wanted."""
    found = importlib.util.find_spec("champ_dataset")
    if found is None:
        raise InputError('CHAMP is not installed: pip install -e ".[champ]"')
    return Path(found.origin).parent / "dataset_files" / "v0.json"


def solutions(path: Path) -> list[ProofRecord]:
    """Every annotated solution; the problem's final answer is not shown."""
    records = []
    for name, problem in read_json(path).get("problems", {}).items():
        for source, note in (problem.get("fws_annotations") or {}).items():
            try:
                records.append(solution(problem, source, note))
            except (KeyError, TypeError, AttributeError) as e:
                raise InputError(f"{path}: {name}, {source!r}: not a solution in CHAMP's form ({e!r})") from e
    if not records:
        raise InputError(f"{path}: no annotated solutions in it")
    return records


def solution(problem: dict, source: str, note: dict) -> ProofRecord:
    text, begin, end = note["text"], note["start_idx"], note["end_idx"]
    if begin is not None and not (0 <= begin < end <= len(text) and text[begin:end].strip()):
        raise KeyError("start_idx")
    wrong = "" if begin is None else text[begin:end].strip()
    while wrong and text.find(wrong) < begin and end < len(text):  # its words occur before: add what follows
        end += 1
        wrong = text[begin:end].strip()
    statement = problem["_raw_text"].replace("@@", "$")
    score = 0.0 if wrong else 1.0
    return ProofRecord(statement, text, score, problem["category"], source, "marked by a person", wrong)


def main() -> None:
    if len(sys.argv) not in (2, 3):
        raise InputError("python tools/champ.py OUT.jsonl [v0.json]")
    records = solutions(Path(sys.argv[2]) if len(sys.argv) == 3 else installed())
    write_jsonl(sys.argv[1], records)
    wrong, problems = sum(bool(r.wrong) for r in records), {r.problem for r in records}
    print(f"{sys.argv[1]}: {len(records)} solutions of {len(problems)} problems, {wrong} with a wrong step")


if __name__ == "__main__":
    try:
        main()
    except InputError as e:
        sys.exit(f"error: {e}")
