"""Tokenizers for small models from scratch: whole phrases as tokens, so that a model of a million parameters
can read and write the words of mathematics in few steps.

Saved as the tokenizer.json that the ecosystem reads, with a chat template that shows a message's parts as
turns of one growing sequence (see language.TurnLanguage).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from nanov2.hub.chat import TASKS, ChatTokenizer

NAMES = {"bos_token": "<bos>", "eos_token": "<end>", "pad_token": "<pad>"}
CONTROL = ("<pad>", "<bos>", "<end>", *(f"<{task}>" for task in TASKS))

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


def phrase_tokenizer(phrases: Iterable[str]) -> ChatTokenizer:
    """Each phrase, with its blanks and dollar signs, is one token; the longest that fits is taken.

    Any other text falls apart into its bytes, a token each, so that it stays what it is. Control tokens are
    no text: their names are read as bytes, so no text can open a turn.
    """
    phrases = list(dict.fromkeys(phrases))
    tokens = [*CONTROL, *phrases, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: i for i, token in enumerate(tokens)}
    # A piece that is a token stays whole (`ignore_merges`); there are no merges, so any other is its bytes.
    backend = Tokenizer(models.BPE(vocab, [], byte_fallback=True, ignore_merges=True))
    longest_first = sorted(phrases, key=len, reverse=True)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, longest_first))), "isolated")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in CONTROL])
    return ChatTokenizer(backend, TEMPLATE, NAMES)
