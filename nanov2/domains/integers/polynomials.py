"""Expressions such as $3(2k + 1) + 2m$ as polynomials with whole coefficients.

    sum    = term { " + " term }
    term   = [number] { factor }        at least one of them
    factor = letter | letter "^2" | "(" sum ")" | "(" sum ")^2"

A polynomial maps monomials (sorted letters: () is the constant, ("k", "k") is k²) to coefficients other than
0. What is larger than any proof of this world needs (LONGEST, DEGREE) does not parse.
"""

from __future__ import annotations

import itertools
import re
from functools import lru_cache

LONGEST, DEGREE, DEPTH = 200, 4, 4  # characters; letters in a monomial; brackets in brackets
PIECES = re.compile(r"[0-9]{1,4}|[a-z]|\^2|[()]| \+ ")

Monomial = tuple[str, ...]
Polynomial = dict[Monomial, int]


class _Refused(Exception):
    """The text is no expression."""


@lru_cache(maxsize=50_000)
def parse(text: str) -> tuple[tuple[Monomial, int], ...] | None:
    """The normal form of an expression as sorted pairs (so that equal polynomials are equal), or None."""
    pieces = PIECES.findall(text) if len(text) <= LONGEST else []
    if not pieces or "".join(pieces) != text:
        return None
    pieces.reverse()  # read by pop()
    try:
        found = _sum(pieces, DEPTH)
    except _Refused:
        return None
    return None if pieces else tuple(sorted(found.items()))


def _sum(pieces: list[str], depth: int) -> Polynomial:
    total = _term(pieces, depth)
    while pieces and pieces[-1] == " + ":
        pieces.pop()
        for monomial, c in _term(pieces, depth).items():
            total[monomial] = total.get(monomial, 0) + c
    return {m: c for m, c in total.items() if c}


def _term(pieces: list[str], depth: int) -> Polynomial:
    product: Polynomial = {(): 1}
    begin = len(pieces)
    if pieces and pieces[-1].isdigit():
        product = {(): int(pieces.pop())}
    while pieces and (pieces[-1] == "(" or pieces[-1].isalpha()):
        factor = _factor(pieces, depth)
        product = _times(product, factor)
        if pieces and pieces[-1] == "^2":
            pieces.pop()
            product = _times(product, factor)
    if len(pieces) == begin:
        raise _Refused
    return product


def _factor(pieces: list[str], depth: int) -> Polynomial:
    piece = pieces.pop()
    if piece != "(":
        return {(piece,): 1}
    if not depth:
        raise _Refused
    inside = _sum(pieces, depth - 1)
    if not pieces or pieces.pop() != ")":
        raise _Refused
    return inside


def _times(a: Polynomial, b: Polynomial) -> Polynomial:
    out: Polynomial = {}
    for (m, c), (n, d) in itertools.product(a.items(), b.items()):
        monomial = tuple(sorted(m + n))
        if len(monomial) > DEGREE:
            raise _Refused
        out[monomial] = out.get(monomial, 0) + c * d
    return out


def write(polynomial: Polynomial) -> str:
    """Higher degrees first, then by letter, the constant last: $6k + 2m + 3$."""
    terms = []
    for monomial, c in sorted(polynomial.items(), key=lambda item: (-len(item[0]), item[0])):
        letters = "".join(x if n == 1 else f"{x}^2" for x, n in _powers(monomial))
        terms += [f"{'' if c == 1 and letters else c}{letters}"] if c else []
    return " + ".join(terms) or "0"


def _powers(monomial: Monomial) -> list[tuple[str, int]]:
    """(letter, 1 or 2) as often as it takes: of higher powers the square is written again."""
    runs = [(x, len(list(run))) for x, run in itertools.groupby(monomial)]
    return [(x, min(2, n - i)) for x, n in runs for i in range(0, n, 2)]


def substitute(polynomial: Polynomial, values: dict[str, Polynomial]) -> Polynomial | None:
    """Letters replaced by polynomials; None where that is larger than anything that parses."""
    total: Polynomial = {}
    try:
        for monomial, c in polynomial.items():
            product: Polynomial = {(): c}
            for letter in monomial:
                product = _times(product, values.get(letter, {(letter,): 1}))
            for m, d in product.items():
                total[m] = total.get(m, 0) + d
    except _Refused:
        return None
    return {m: c for m, c in total.items() if c}


def letters(polynomial: Polynomial) -> set[str]:
    return {x for monomial in polynomial for x in monomial}


def residues(polynomial: Polynomial, modulus: int) -> set[int]:
    """All values modulo `modulus`: every residue is tried for every letter."""
    names = sorted(letters(polynomial))
    found = set()
    for values in itertools.product(range(modulus), repeat=len(names)):
        at = dict(zip(names, values, strict=True))
        total = 0
        for monomial, c in polynomial.items():
            for x in monomial:
                c = c * at[x] % modulus
            total += c
        found.add(total % modulus)
        if len(found) == modulus:
            break
    return found
