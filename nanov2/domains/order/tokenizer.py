"""The embedded world's tokenizer: terms, relations and whole phrases as tokens."""

from __future__ import annotations

from nanov2.domains.language import HEADING, MV_END, MV_START, V_END, V_START
from nanov2.domains.order import world
from nanov2.domains.phrases import phrase_tokenizer
from nanov2.hub.chat import ChatTokenizer

# Every text of the world is made of these, of terms, and of relations with a space on either side.
PHRASES = (
    *(f"{family.opening} $" for family in world.FAMILIES),
    "$, $",
    "$ and $",
    "$. Show that $",
    "$.",
    HEADING,
    "Indeed, $",
    f"{V_START}\n",
    "- $",
    *(f"${given}" for given in world.GIVEN.values()),
    *(f"{words}\n" for words in world.VERDICTS.values()),
    *(f"{words}\n" for words in world.ENDS.values()),
    *(f"{words}\n" for words in world.STRONG.values()),
    f"{V_END} ",
    *world.BOXED.values(),
    f"{MV_START}\n",
    *(f"{words}\n" for words in world.REAL.values()),
    *(f"{words}\n" for words in world.ENDS_REAL.values()),
    *(f"{words}\n" for words in world.STRONG_REAL.values()),
    f"{world.NO_CLAIM}\n",
    *(f"{words}\n" for words in world.FOLLOWS.values()),
    f"{MV_END} ",
)


def order_tokenizer() -> ChatTokenizer:
    """The tokenizer of a fresh model."""
    relations = (f" {relation} " for relation in world.RELATIONS)
    return phrase_tokenizer([*world.TERMS, *relations, *PHRASES])
