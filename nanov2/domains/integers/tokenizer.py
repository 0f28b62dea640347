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

# And those of problems with a lemma of these beside.
OF_LEMMAS = (
    world.LEMMA,
    " Write $",
    *(f"${words}" for words in world.PROVED.values()),
    f"{world.DEFINED['unshown']}\n",
    *(f"{words}\n" for words in world.LEMMAS.values()),
    *(words for (name, _), words in world.CLAIMED.items() if name == "lemma"),
)


def integers_tokenizer(lemmas: bool = False) -> ChatTokenizer:
    """The tokenizer of a fresh model. Words that no problem of a run needs are no tokens of its models."""
    letters = (*world.VARIABLES, *world.WITNESSES)
    phrases = [*PHRASES, *letters, *map(str, range(NUMBERS))]
    return phrase_tokenizer([*phrases, *OF_LEMMAS] if lemmas else [p for p in phrases if p not in OF_LEMMAS])
