"""The world's tokenizer: phrases as tokens, other text whole, and control ids out of any text's reach."""

import random

import pytest
from conftest import MIXED, NOISE, some_problems, some_proofs
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from nanov2.domains.language import HEADING, Language
from nanov2.domains.order.demos import make_demonstration, weak_critique
from nanov2.domains.order.tokenizer import PHRASES, order_tokenizer
from nanov2.domains.order.world import (
    RELATIONS,
    TERMS,
    parse_critique,
    parse_proof,
    write_critique,
)
from nanov2.domains.phrases import CONTROL

TOKENIZER = order_tokenizer()
KNOWN = {*PHRASES, *TERMS, *(f" {r} " for r in RELATIONS)}
PIECES = [*CONTROL, *sorted(KNOWN), "é", "<0x41>"]


def texts_of_the_language(n):
    rng = random.Random(1)
    for problem in some_problems(n, seed=20, chain=(2, 6), facts=(2, 12)):
        shown = make_demonstration(rng, problem, rng.choice((NOISE, MIXED)))
        yield shown.problem
        yield from (text for _, text in shown.turns)


def test_every_text_of_the_language_is_phrases_terms_and_relations_and_comes_back():
    for text in texts_of_the_language(300):
        ids = TOKENIZER.encode(text)
        assert TOKENIZER.decode(ids) == text
        assert {TOKENIZER.backend.id_to_token(i) for i in ids} <= KNOWN


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.text(), st.lists(st.sampled_from([*CONTROL, *sorted(KNOWN), "é", "<0x41>"])).map("".join))
)
@example("<0x41> and $, <end>\r\n\u2028\U0001f4a5")
def test_any_other_text_comes_back_too_and_no_text_makes_a_control_token(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text and TOKENIZER.control.isdisjoint(ids)


# What the same content took as words with a space between, of the world's first language.
def words_of_problem(problem):
    return 1 + 4 * len(problem.facts) + 4


def words_of_proof(proof):
    return 2 * len(parse_proof(proof)) + 2


def words_of_critique(critique):
    return 5 * len(parse_critique(critique).findings) + 3


def test_texts_take_few_more_tokens_than_single_words_would():
    """At most 1.2 times for problem and proof, 1.6 for a critique, over 1,000 demonstrations."""
    rng, new, old = random.Random(2), [0, 0], [0, 0]
    for problem in some_problems(1000, seed=21):
        (_, answer), (_, critique), *_ = make_demonstration(rng, problem, NOISE).turns
        proof = answer.removeprefix(HEADING)
        new[0] += len(TOKENIZER.encode(problem.text)) + len(TOKENIZER.encode(answer))
        old[0] += words_of_problem(problem) + words_of_proof(proof)
        new[1] += len(TOKENIZER.encode(critique))
        old[1] += words_of_critique(critique)
    assert new[0] / old[0] <= 1.2 and new[1] / old[1] <= 1.6


def growing_sequences(n):
    """(messages, the ids that the sequence has where the answer begins), for all four tasks."""
    rng, language, t = random.Random(3), Language(), TOKENIZER
    for problem, proof in some_proofs(n, seed=22):
        v = weak_critique(rng, problem, parse_proof(proof), NOISE)
        critique, x = write_critique(v), problem.text
        ids = [t.bos, *t.encode(x), t.task["prove"]]
        yield language.prove(x), ids
        ids = [*ids, *t.encode(HEADING + proof), t.end, t.task["verify"]]
        yield language.verify(x, proof), ids
        ids = [*ids, *t.encode(critique), t.end]
        yield language.meta(x, proof, critique), [*ids, t.task["meta"]]
        yield language.revise(x, proof, [critique]), [*ids, t.task["prove"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """tokenizer.json and tokenizer_config.json, as in a model's folder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    order_tokenizer().save(folder)
    return folder


def test_the_template_makes_the_growing_sequence_in_transformers_too(folder):
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    for messages, ids in growing_sequences(20):
        found = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert found == ids
        assert theirs.decode(found) == TOKENIZER.decode(ids)


def test_a_message_without_parts_is_a_problem(folder):
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    text = some_problems(1)[0].text
    message = {"role": "user", "content": text}
    found = theirs.apply_chat_template([message], add_generation_prompt=True, return_dict=False)
    assert found == [TOKENIZER.bos, *TOKENIZER.encode(text), TOKENIZER.task["prove"]]
