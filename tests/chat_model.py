"""A tiny chat model in a Hugging Face folder, with random weights and a tokenizer of whole words."""

import csv
import json
import re
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from nanov2.domains import language as natural
from nanov2.domains.marks import ASKED
from nanov2.domains.natural import domain as pretrained
from nanov2.hub import hf
from nanov2.model.decoder import Model, ModelConfig
from nanov2.records import write_jsonl

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PIECES = r"\n+| +|[^\s]+"


def graded_proofs(n: int = 24) -> list[dict]:
    """Problems of a few words; a proof that says why is right."""
    return [
        {
            "problem": f"Show that claim {i} holds .",
            "proof": "It holds by parity ." if i % 2 else "It holds .",
            "score": float(i % 2),
        }
        for i in range(n)
    ]


def spreadsheet(n: int = 200) -> list[dict]:
    """A user's own grades: points from 0 to 7 for several proofs of each of 24 problems."""
    ends = [" ".join(["It holds", *["by parity"] * (k % 8), *["."] * (1 + k // 8)]) for k in range(n)]
    problems = [row["problem"] for row in graded_proofs()]
    return [
        {"statement": problems[k % len(problems)], "solution": ends[k], "points": k % 8} for k in range(n)
    ]


def texts() -> list[str]:
    """All that the model may have to read or write."""
    rows = graded_proofs()
    out = [m["content"] for r in rows for m in natural.prove(r["problem"])]
    for r in rows[:2]:
        critiques = [pretrained.critique_in_form(s) for s in (0.0, 0.5, 1.0)]
        metas = [pretrained.meta_critique_in_form(s) for s in (0.0, 0.5, 1.0)]
        out += [pretrained.proof_in_form(r["proof"], 1.0), *critiques, *metas, natural.AGAIN, natural.ALONE]
        out += [m["content"] for m in natural.verify(r["problem"], r["proof"])]
        out += [m["content"] for c in critiques for m in natural.meta(r["problem"], r["proof"], c)]
        out += [m["content"] for m in natural.refine(r["problem"], r["proof"], critiques)]
    return [*out, "user\n", "assistant\n"]


def marked_proofs(n: int = 24) -> list[dict]:
    """Graded proofs with the first wrong step of the faulty ones."""
    return [row | {"wrong": "" if row["score"] else "It holds ."} for row in graded_proofs(n)]


def marked_texts() -> list[str]:
    """What critiques that say where an issue is have beside other critiques."""
    quotes = ("It holds .", "It holds by parity .")
    return [ASKED, *(pretrained.critique_in_form(s, q) for s in (0.0, 0.5) for q in quotes)]


def make_folder(folder: Path, more: list[str] | None = None, **shape) -> Path:
    """`more`: texts whose words the model knows too."""
    known = texts() + (more or [])
    words = sorted({piece for text in known for piece in re.findall(PIECES, text)} | {"\n", "\n\n", " "})
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["?", *words])}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    backend.decoder = decoders.Fuse()
    special = ("<|im_start|>", "<|im_end|>")
    backend.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in special])
    settings = dict(dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=128, embed_conv=0) | shape
    model = Model(ModelConfig(vocab_size=backend.get_vocab_size(), **settings))
    hf.save(folder, model.init_weights(torch.Generator().manual_seed(0)))
    backend.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    write_jsonl(folder / "proofs.jsonl", graded_proofs())
    with open(folder / "proofs.csv", "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, ("statement", "solution", "points"))
        writer.writeheader()
        writer.writerows(spreadsheet())
    return folder
