"""The embedded world's tokenizer: one token a word, and control tokens that no text can produce.

Built with `tokenizers`, saved as the tokenizer.json that the ecosystem reads. Control tokens mark turns:

    <bos> problem <prove> proof <end> <verify> critique <end> <meta> meta-critique <end>

`encode` treats a control token's name inside a text as plain text (here: an unknown word), so a hostile
proof cannot open a turn of its own.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer as HFTokenizer
from tokenizers import models, pre_tokenizers

from nanov2.domains.order.world import WORDS

TASKS = ("prove", "verify", "meta")
CONTROL = ("<pad>", "<bos>", "<end>", *(f"<{task}>" for task in TASKS))


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
        vocab = {word: i for i, word in enumerate(("<unk>", *WORDS))}
        backend = HFTokenizer(models.WordLevel(vocab, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.add_special_tokens(list(CONTROL))
        return cls(backend)

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
        return " ".join(self.backend.id_to_token(i) or "<unk>" for i in ids)
