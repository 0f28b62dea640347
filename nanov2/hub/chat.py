"""The tokenizer of a model folder, with its chat template; models and their folders.

Text that somebody wrote (a problem, a proof, a critique) is only text: it is encoded apart from the template,
by a tokenizer that knows no control tokens, and the ids are joined. So no text can open or end a turn,
whatever names of control tokens it holds.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer as Backend

from nanov2.errors import InputError
from nanov2.hub import hf
from nanov2.hub.author import Messages
from nanov2.hub.template import TemplateError, render
from nanov2.model.decoder import Model
from nanov2.model.lora import halved
from nanov2.records import write_atomically

TASKS = (
    "prove",
    "verify",
    "meta",
)  # turns that a run's own small models open with a token, <prove> and so on
MARK = "\ue000{}\ue001"  # stands for a text while the template is rendered
MARKS = re.compile("( ?)\ue000([0-9]+)\ue001( ?)")
KEPT = (  # of a folder, what is copied as it is where its tokenizer is saved
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


class ChatTokenizer:
    """Text and chats to ids, and ids to text.

    `names` are the control tokens of tokenizer_config.json: eos_token ends a turn, bos_token and pad_token
    may be missing. `end` is the id of eos_token, `ends` all ids that end a turn, `end` first. `task` are the
    ids of <prove>, <verify> and <meta> where all are there, as for a run's own small models, else empty.
    """

    def __init__(
        self,
        backend: Backend,
        template: str,
        names: dict[str, str],
        ends: tuple[int, ...] = (),
        folder: Path | None = None,
    ):
        self.backend, self.template, self.names, self.folder = backend, template, names, folder
        self.bos, self.end, self.pad = (self._id(k) for k in ("bos_token", "eos_token", "pad_token"))
        if self.end is None:
            raise InputError(f"{folder or 'tokenizer'}: eos_token is missing, or not in the vocabulary")
        self.pad = self.end if self.pad is None else self.pad
        self.ends = (self.end, *(i for i in dict.fromkeys(ends) if i != self.end))
        found = {task: backend.token_to_id(f"<{task}>") for task in TASKS}
        self.task: dict[str, int] = {} if None in found.values() else found
        added = backend.get_added_tokens_decoder()
        # What a text may not produce. Runs of blanks are tokens of their own in some vocabularies.
        self.control = frozenset(i for i, t in added.items() if t.special or t.content.strip())
        self.control = self.control - {_unknown(backend)}

    @classmethod
    def load(cls, folder: str | Path) -> ChatTokenizer:
        """That of a model folder."""
        folder = Path(folder)
        path, settings = folder / "tokenizer.json", hf.read_json(folder / "tokenizer_config.json")
        try:
            backend = Backend.from_file(str(path))
        except Exception as e:  # the library raises a bare Exception
            raise InputError(f"{path}: not a tokenizer: {e}") from e
        backend.no_truncation()
        backend.no_padding()
        names = {k: _content(settings.get(k)) for k in ("bos_token", "eos_token", "pad_token")}
        return cls(backend, _template(folder, settings), names, _ends(folder, backend), folder)

    def save(self, folder: str | Path) -> None:
        """tokenizer.json, tokenizer_config.json and generation_config.json, as the ecosystem reads them."""
        folder = Path(folder)
        if self.folder and self.folder.resolve() == folder.resolve():
            return
        folder.mkdir(parents=True, exist_ok=True)
        if self.folder:  # with all that the folder says beside
            for path in (self.folder / name for name in KEPT):
                if path.is_file():
                    write_atomically(folder / path.name, path.read_bytes())
            return
        settings = {k: v for k, v in self.names.items() if v} | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "chat_template": self.template,
        }
        ids = {"bos_token_id": self.bos, "eos_token_id": list(self.ends), "pad_token_id": self.pad}
        for name, value in (
            ("tokenizer.json", self.backend.to_str(pretty=True)),
            ("tokenizer_config.json", json.dumps(settings, indent=1, ensure_ascii=False)),
            ("generation_config.json", json.dumps({k: v for k, v in ids.items() if v is not None})),
        ):
            write_atomically(folder / name, value)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.backend.get_vocab().values()) + 1

    def chat(self, messages: Messages) -> list[int]:
        """Ids of a chat up to where the assistant answers. Every text in a message is encoded by itself: no
        token spans the template and a text."""
        return self._ids(self._parts(messages))

    def turn(self, text: str) -> list[int]:
        """Ids of a further message of the user, from after the end of an answer to where the next begins."""
        question, answer = {"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}
        parts = self._parts([question, answer, {"role": "user", "content": text}])
        if ("B", True) in parts:
            (after, _), *rest = parts[parts.index(("B", True)) + 1 :] or [("", False)]
            before, end, opening = after.partition(self.names["eos_token"])
            if not before.strip() and end and (opening or rest):
                return self._ids([(opening, False), *rest])
        raise InputError(f"{self.folder}: the chat template does not end an answer with its eos_token")

    def encode(self, text: str) -> list[int]:
        """Ids of a text alone, in which a control token's name is only text."""
        return self._plain.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids; control tokens show as their names."""
        return self.backend.decode(ids, skip_special_tokens=False)

    def answer(self, ids: list[int]) -> str:
        """The text of an answer to `chat`, with the <think> that some templates open it with: thinking that
        never ends must not pass for an answer."""
        return ("<think>" if self._opens_thinking else "") + self.decode(ids)

    @cached_property
    def _opens_thinking(self) -> bool:
        *_, (last, _) = [("", False), *self._parts([{"role": "user", "content": "A"}])]
        return "<think>" in last.rpartition("</think>")[2]

    def _id(self, name: str) -> int | None:
        return self.backend.token_to_id(self.names.get(name) or "")

    @cached_property
    def _plain(self) -> Backend:
        """The same tokenizer without any control token."""
        return _without(self.backend, self.control)

    def _ids(self, parts: list[tuple[str, bool]]) -> list[int]:
        return [
            i
            for text, written in parts
            for i in (
                self.encode(text) if written else self.backend.encode(text, add_special_tokens=False).ids
            )
        ]

    def _parts(self, messages: Messages) -> list[tuple[str, bool]]:
        """A chat cut into (text, whether somebody wrote it); what is not written is the template's."""
        texts, marked = [], []
        for message in messages:
            marked.append(dict(message))
            for name in message.keys() - {"role", "task"}:
                # with blanks around, which show whether the template strips what it shows
                marked[-1][name] = f" {MARK.format(len(texts))} "
                texts.append(message[name])
        values = {"messages": marked, "add_generation_prompt": True, **self.names}
        try:
            shown = render(self.template, json.dumps(values, sort_keys=True))
        except TemplateError as e:
            raise InputError(f"{self.folder}: the chat template cannot show these messages: {e}") from e
        parts, at = [("", False)], 0
        for found in MARKS.finditer(shown):
            if int(found[2]) >= len(texts):
                continue
            text = texts[int(found[2])]
            text = text if found[1] else text.lstrip()
            text = text if found[3] else text.rstrip()
            # Blanks at the ends join those of the template, as in a tokenizer that reads the whole chat; the
            # last before a word belongs to it.
            lead = max(0, len(text) - len(text.lstrip()) - 1)
            tail = len(text) - len(text[lead:].rstrip()) - lead if text.strip() else 0
            before = parts.pop()[0] + shown[at : found.start()] + text[:lead]
            parts += [
                (before, False),
                (text[lead : len(text) - tail], True),
                (text[len(text) - tail :], False),
            ]
            at = found.end()
        parts.append((parts.pop()[0] + shown[at:], False))
        if not any(written for _, written in parts):
            raise InputError(f"{self.folder}: the chat template shows nothing of these messages")
        return parts


def _without(backend: Backend, control: frozenset[int]) -> Backend:
    """A copy of a tokenizer that no text makes write one of the ids, neither as an added token nor as a
    word or piece of the vocabulary."""
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if t["id"] not in control]
    model, gone = spec["model"], {backend.id_to_token(i) for i in control}
    vocab = model.get("vocab", {})
    if isinstance(vocab, dict):
        gone &= vocab.keys()
        model["vocab"] = {(f"\ue000{i}\ue001" if piece in gone else piece): i for piece, i in vocab.items()}
    else:  # Unigram: [piece, log-probability] by id
        model["vocab"] = [[f"\ue000{i}\ue001", -1e9] if i in control else v for i, v in enumerate(vocab)]
    if merges := model.get("merges"):
        pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in merges]
        model["merges"] = [[a, b] for a, b in pairs if not {a, b, a + b} & gone]
    return Backend.from_str(json.dumps(spec))


def _unknown(backend: Backend) -> int | None:
    """The id that stands for what the vocabulary does not have."""
    model = json.loads(backend.to_str())["model"]
    return model["unk_id"] if "unk_id" in model else backend.token_to_id(model.get("unk_token") or "")


def _content(token: object) -> str:
    """tokenizer_config.json states a token as text or as an object."""
    return str(token.get("content", "") if isinstance(token, dict) else token or "")


def _ends(folder: Path, backend: Backend) -> tuple[int, ...]:
    """All ids that end a turn by generation_config.json, which need not be there."""
    path = folder / "generation_config.json"
    found = hf.read_json(path).get("eos_token_id") if path.is_file() else None
    ids = found if isinstance(found, list) else [] if found is None else [found]
    for i in ids:
        if type(i) is not int or backend.id_to_token(i) is None:
            raise InputError(f"{path}: eos_token_id {i!r:.40} is no id of tokenizer.json")
    return tuple(ids)


def _template(folder: Path, settings: dict) -> str:
    path, found = folder / "chat_template.jinja", settings.get("chat_template")
    if isinstance(found, list):  # several by name
        found = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}.get("default")
    if path.is_file():
        try:
            found = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise InputError(f"cannot read {path}: {e}") from e
    if not isinstance(found, str):
        raise InputError(f"{folder}: no chat template in tokenizer_config.json or chat_template.jinja")
    return found


def load_model(
    folder: str | Path, device: torch.device | str = "cpu", half: bool = False
) -> tuple[Model, ChatTokenizer]:
    """A folder's weights and its tokenizer: in fp32, as they are trained; or, what is not trained, `half`:
    matrices, and products, in bf16."""
    at = torch.device(device)
    model = hf.load(folder, halved=lambda name, p: half and halved(name, p, at)).to(at)
    model.set_precision("bf16" if half else "fp32")
    return model, ChatTokenizer.load(folder)


def lazy_model(folder: str | Path) -> tuple[Model, ChatTokenizer]:
    """An empty model whose `source` is a folder, and its tokenizer."""
    return hf.lazy(folder), ChatTokenizer.load(folder)


def save_model(folder: str | Path, model: Model, tokenizer: ChatTokenizer, writes: bool = True) -> None:
    """A folder that transformers, vLLM, SGLang and llama.cpp's converter read. Every rank calls it where the
    model has a `source`; the one that `writes` does."""
    hf.save(folder, model, tokenizer.folder, writes)
    if writes:
        tokenizer.save(folder)
