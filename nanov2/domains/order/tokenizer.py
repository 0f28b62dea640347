"""The embedded world's tokenizer: terms, relations and whole phrases as tokens.

Made with `tokenizers`, saved as the tokenizer.json that the ecosystem reads, with a chat template that shows
a message's parts as turns of one growing sequence:

    <bos> problem <prove> proof <end> <verify> critique <end> <meta> meta-critique <end>

Any other text falls apart into its bytes, a token each, so that it stays what it is. Control tokens are no
text: `Tokenizer.encode` reads their names as bytes, so a hostile proof cannot open a turn of its own.
"""

from __future__ import annotations

import re
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

from nanov2.domains.language import HEADING, MV_END, MV_START, V_END, V_START
from nanov2.domains.order import world

TASKS = ("prove", "verify", "meta")
CONTROL = ("<pad>", "<bos>", "<end>", *(f"<{task}>" for task in TASKS))
NAMES = {"bos_token": "<bos>", "eos_token": "<end>", "pad_token": "<pad>"}

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

# From the parts that language.py gives its messages. A message without them is a problem.
TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == "assistant" -%}
{{ message.content + eos_token }}
{%- else -%}
{%- set task = message.task | default("prove") -%}
{{ bos_token + (message.problem | default(message.content)) + "<prove>" }}
{%- if task != "prove" -%}
{{ "## Solution\\n" + message.proof + eos_token + "<verify>" }}
{%- if task != "verify" -%}
{{ message.critique + eos_token + ("<meta>" if task == "meta" else "<prove>") }}
{%- endif -%}
{%- endif -%}
{%- endif -%}
{%- endfor -%}
"""


def make_tokenizer() -> HFTokenizer:
    """The tokenizer of a fresh model."""
    relations = [f" {relation} " for relation in world.RELATIONS]
    tokens = [*CONTROL, *world.TERMS, *relations, *PHRASES, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: i for i, token in enumerate(tokens)}
    # A piece that is a token stays whole (`ignore_merges`); there are no merges, so any other is its bytes.
    backend = HFTokenizer(models.BPE(vocab, [], byte_fallback=True, ignore_merges=True))
    longest_first = sorted([*world.TERMS, *relations, *PHRASES], key=len, reverse=True)
    pieces = "|".join(map(re.escape, longest_first))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), behavior="isolated")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROL])
    return backend


class Tokenizer:
    """Text ↔ ids. Attributes `pad`, `bos`, `end` and `task[name]` are control ids."""

    def __init__(self, backend: HFTokenizer):
        backend.encode_special_tokens = True  # control tokens in a text are text
        self.backend = backend
        ids = {name: backend.token_to_id(name) for name in CONTROL}
        missing = [name for name, i in ids.items() if i is None]
        if missing:
            raise ValueError(f"tokenizer.json has no token {', '.join(missing)}: was it made by nanov2?")
        self.pad, self.bos, self.end = ids["<pad>"], ids["<bos>"], ids["<end>"]
        self.task = {task: ids[f"<{task}>"] for task in TASKS}
        self.control = frozenset(ids.values())

    @classmethod
    def for_world(cls) -> Tokenizer:
        return cls(make_tokenizer())

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        return cls(HFTokenizer.from_file(str(path)))

    def save(self, path: str | Path) -> None:
        self.backend.save(str(path))

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without control tokens."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids; control tokens show as their names."""
        return self.backend.decode(ids, skip_special_tokens=False)
