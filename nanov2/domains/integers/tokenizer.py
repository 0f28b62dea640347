"""The integers world's tokenizer: numbers, letters and whole phrases as tokens."""

from __future__ import annotations

from nanov2.domains.integers import world
from nanov2.domains.language import HEADING, MV_END, MV_START, V_END, V_START
from nanov2.domains.phrases import phrase_tokenizer
from nanov2.hub.chat import ChatTokenizer

NUMBERS = 100  # from 0 on; larger ones fall apart into digits

# Every text of the world is made of these, of numbers and of letters.
PHRASES = (
    "Let $",
    ", let $",
    " and let $",
    *(f"$ be {words}" for words in world.CONDITIONS),
    *(f"$ is {words}." for words in world.CONDITIONS),
    ". Show that $",
    HEADING,
    "Write $",
    "$, $",
    "$ and $",
    "$. Then $",
    "$. So $",
    " = ",
    " + ",
    "(",
    ")",
    "^2",
    f"{V_START}\n",
    "- $",
    *(f"${given}" for given in world.GIVEN.values()),
    *(f"{words}\n" for words in world.DEFINED.values()),
    world.THAT_IS,
    *(f"{words}\n" for words in world.EXPANDED.values()),
    *(f"{words}\n" for name in world.WHOLE.values() for words in name.values()),
    f"{V_END} ",
    *world.BOXED.values(),
    f"{MV_START}\n",
    world.AFTER,
    "$",
    *world.CLAIMED.values(),
    *(f"{words}\n" for words in world.REAL.values()),
    f"{world.NO_CLAIM}\n",
    *(f"{words}\n" for words in world.FOLLOWS.values()),
    f"{MV_END} ",
)


def integers_tokenizer() -> ChatTokenizer:
    """The tokenizer of a fresh model."""
    letters = (*world.VARIABLES, *world.WITNESSES)
    return phrase_tokenizer([*PHRASES, *letters, *map(str, range(NUMBERS))])
