"""A model folder as an author."""

import torch
from chat_model import make_folder
from safetensors.torch import load_file, save_file

from nanov2.domains.language import Language, prove, verify
from nanov2.hub.cache import Cache
from nanov2.hub.endpoint import EndpointConfig
from nanov2.hub.local import FolderAuthor

QUESTIONS = [prove("Show that claim 1 holds ."), verify("Show that claim 2 holds .", "It holds .")]


def test_an_answer_hangs_on_question_and_number_alone(tmp_path):
    config = EndpointConfig(model=str(make_folder(tmp_path / "m")), max_tokens=8)
    author = FolderAuthor(config, Language)
    rows = author.answers(QUESTIONS, 3)
    assert author.answers(QUESTIONS[1:], 2, 1) == [rows[1][1:]]
    assert author.answers(QUESTIONS, 1, [2, 0]) == [rows[0][2:], rows[1][:1]]
    assert all(a.tokens == 8 and a.missing == "cut off" or a.text for row in rows for a in row)


def test_other_weights_in_the_same_folder_are_asked_anew(tmp_path):
    folder = make_folder(tmp_path / "m")
    config = EndpointConfig(model=str(folder), max_tokens=4, cache=str(tmp_path / "c.jsonl"))
    first = FolderAuthor(config, Language).answers(QUESTIONS)
    assert FolderAuthor(config, Language).answers(QUESTIONS) == first and len(Cache(config.cache).known) == 2
    weights = load_file(folder / "model.safetensors")
    save_file({k: v + torch.randn_like(v) for k, v in weights.items()}, folder / "model.safetensors")
    FolderAuthor(config, Language).answers(QUESTIONS)
    assert len(Cache(config.cache).known) == 4
