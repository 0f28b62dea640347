"""What several looks come to, when they end, and that a judge that failed is a state of its own."""

import math

import pytest

from autolabel import assess_proofs
from nanov2.domains.language import V_END, V_START, Language
from nanov2.errors import InputError
from nanov2.hub.author import Answer
from nanov2.method.config import AutolabelConfig, SearchConfig, Verifier2Config
from nanov2.method.consensus import RULES, Assessed, Rule, settled
from nanov2.method.judges import Judge
from nanov2.method.rewards import R_looks
from nanov2.method.search import Candidate, Weighed
from nanov2.method.sequential import SequentialTest
from nanov2.run.config import load_config

LANGUAGE = Language()


class Scripted:
    """An author whose answers are given: answer i of every question is script[i]; it counts questions."""

    def __init__(self, *script):
        self.script, self.asked = script, []

    def answers(self, questions, n=1, first=0):
        self.asked += [(q[0].get("critique"), i) for q in questions for i in range(first, first + n)]
        return [[Answer(self.script[i], 5) for i in range(first, first + n)] for _ in questions]


def critique(score):
    return None if score is None else f"{V_START}\n- said {score}\n{V_END} \\boxed{{{score}}}"


def judge(scores, rule="mean", error=0.0, meta=None):
    author = Scripted(*map(critique, scores))
    return Judge(author, LANGUAGE, LANGUAGE.claimed_score, len(scores), rule=rule, error=error, meta=meta)


def meta_of(quality):
    author = Scripted(critique(quality))
    return Judge(author, LANGUAGE, LANGUAGE.claimed_quality)


def score(given):
    return given.ask([LANGUAGE.verify("X", "Y")])[0].score


@pytest.fixture(autouse=True)
def _read_quality_as_score(monkeypatch):
    monkeypatch.setattr(LANGUAGE, "claimed_quality", LANGUAGE.claimed_score)


@pytest.mark.parametrize(
    "rule, scores, weights, expected",
    [
        ("mean", [1, 0, 0.5], [1, 1, 1], 0.5),
        ("min", [1, 0.5, 1], [1, 1, 1], 0.5),
        ("gate", [1, 0], [1, 0.25], 0.8),
        ("gate", [1, 1, 0], [1, 1, 0], 1.0),  # an invented issue counts for nothing
        ("gate", [0.5, 0.5, 0.5], [0.1, 0.3, 0.7], 0.5),
        ("gate", [1, 0], [1, math.nan], 1.0),  # the meta-verifier failed: left out
    ],
)
def test_looks_come_to_what_the_rule_says(rule, scores, weights, expected):
    assert R_looks(rule, scores, weights) == expected


@pytest.mark.parametrize("rule", ["mean", "min", "gate"])
def test_C11_where_no_look_can_be_read_the_score_is_nan_and_never_0(rule):
    assert math.isnan(score(judge([None, None], rule, meta=meta_of(1) if rule == "gate" else None)))
    assert math.isnan(R_looks("gate", [0.0], [0.0])) and math.isnan(R_looks("gate", [0.0], [math.nan]))


def test_C11_a_failed_look_is_not_the_lowest_of_a_pessimistic_judge():
    assert score(judge([1, None, 1], "min")) == 1 and score(judge([1, None, 0.5], "min")) == 0.5


def test_a_gated_judge_asks_the_meta_verifier_of_claimed_issues_alone():
    meta = meta_of(0.5)
    assert score(judge([1, 0, 1], "gate", meta=meta)) == pytest.approx(2 / 2.5)
    assert meta.author.asked == [(critique(0), 0)]
    failed = meta_of(None)
    assert score(judge([1, 0], "gate", meta=failed)) == 1 and failed.unparsed == 1


def test_looks_end_where_the_sequential_test_is_sure():
    sure, unsure = judge([1] * 8, error=0.05), judge([1, 0] * 4, error=0.05)
    assert score(sure) == 1 and sure.asked == 3 and sure.tokens == 15
    assert score(unsure) == 0.5 and unsure.asked == 8
    assert judge([0.5] * 8, error=0.05).ask([LANGUAGE.verify("X", "Y")])[0].scores == (0.5, 0.5)


def test_a_pessimistic_judge_that_may_stop_does_at_the_lowest_score():
    stops, goes_on = judge([0, 1, 1, 1], "min", error=0.01), judge([0, 1, 1, 1], "min")
    assert score(stops) == score(goes_on) == 0 and (stops.asked, goes_on.asked) == (1, 4)


def test_a_judge_without_early_stopping_asks_once_for_all_its_looks():
    both = judge([1, 0.5])
    assert [j.score for j in both.ask([LANGUAGE.verify("X", y) for y in "YZ"])] == [0.75, 0.75]
    assert both.asked == 4 and both.ask([LANGUAGE.verify("X", "Y")])[0].spread == 0.5
    assert math.isnan(judge([1, None]).ask([LANGUAGE.verify("X", "Y")])[0].spread)


def test_the_sequential_test_is_even_handed():
    test = SequentialTest(0.2, 0.8, 0.05, 0.05)
    assert test.wrong([(True, 1.0)] * 3) and not test.wrong([(True, 1.0)] * 2)
    assert test.right([(False, 1.0)] * 3) and not test.right([(False, 1.0), (False, 1.0), (True, 1.0)])
    assert test.evidence([(True, 0.0)]) == 0  # not believed


def test_search_ranks_by_its_rule():
    looks = [Weighed("", 1.0, 1.0), Weighed("", 0.5, 0.5)]
    scores = {rule: Candidate("", critiques=looks, rule=rule).score for rule in ("gate", "mean", "min")}
    assert scores == {"gate": pytest.approx(2.5 / 3), "mean": 0.75, "min": 0.5}
    assert Candidate("", rule="min").score == 0
    fatal = [Weighed("", 0.0, 1.0)]
    assert Candidate("", critiques=fatal, rule="min").hopeless(SearchConfig())
    assert not Candidate("", critiques=fatal).hopeless(SearchConfig())


def test_gated_labels_hardly_hear_an_issue_that_the_meta_verifier_rejects():
    fine, rejected = Assessed("", 1.0, False), Assessed("", 0.0, True, (0.0, 0.5))
    confirmed = Assessed("", 0.0, True, (1.0, 1.0))
    rule = Rule.of(AutolabelConfig(rule="gate"))
    assert rule([fine, fine, rejected]) == 1 and rule([fine, confirmed]) == 0.5
    assert rule([Assessed("", 0.0, True, (None,))]) is None


def test_a_meta_verifiers_looks_cannot_be_gated():
    with pytest.raises(InputError, match="verifier2.judge_rule"):
        load_config(None, ["--verifier2.judge_rule=gate"])
    assert Verifier2Config().judge_rule == "mean"


def test_C30_every_step_draws_anew_and_a_step_that_is_done_again_draws_the_same():
    given = judge([1, 0, 1, 0, 1, 0])
    given.samples = 2
    for step in (0, 1, 2, 1):
        given.step = step
        given.ask([LANGUAGE.verify("X", "Y")])
    assert [i for _, i in given.author.asked] == [0, 1, 2, 3, 4, 5, 2, 3]


def test_a_judge_behind_an_endpoint_is_told_from_another_by_its_model_and_sampling_wherever_it_is():
    def weights(**identity):
        given = judge([1])
        given.author.identity = identity
        return given.weights

    one = weights(url="http://a/v1", model="m", max_tokens=9)
    assert one == weights(url="http://b/v1", model="m", max_tokens=9)
    assert one and one != weights(url="http://a/v1", model="n", max_tokens=9)
    assert one != weights(url="http://a/v1", model="m", max_tokens=8)
    assert weights(weights="hash", max_tokens=9) == "hash" and weights(max_tokens=9) == ""


class Opinions:
    """A verifier with a fixed score for each proof, given in every critique; or a meta-verifier that confirms
    all. It counts the answers."""

    def __init__(self, scores):
        self.scores, self.drawn = scores, 0

    def answers(self, questions, n=1, first=0):
        self.drawn += n * len(questions)
        return [
            [Answer(critique(1 if "critique" in q[0] else self.scores[q[0]["proof"]]))] * n for q in questions
        ]


@pytest.mark.parametrize("name", sorted(RULES))
def test_labels_by_a_sequential_test_are_those_of_all_critiques_on_clear_cases_at_fewer_looks(name):
    scores = {"right": 1.0, "slip": 0.5, "fatal": 0.0}
    pairs = [("a problem", proof) for proof in scores]
    labels, drawn = {}, {}
    for error in (0.0, 0.05):
        config = AutolabelConfig(rule=name, n=8, chunk=1, error=error)
        verifier = Opinions(scores)
        found = assess_proofs(verifier, Opinions({}), LANGUAGE, config, pairs)
        labels[error], drawn[error] = [Rule.of(config)(cs) for cs in found], verifier.drawn
        assert drawn[error] == sum(map(len, found))
    assert labels[0.05] == labels[0.0] == [1.0, 0.5, 0.0]
    assert drawn[0.05] <= 7 < 18 <= drawn[0.0]
    assert len(found[0]) == (1 if name == "single" else 3)  # as exercise 4 of docs/hacking.md says


def test_without_an_error_critiques_of_a_label_end_as_before():
    clean = [Assessed("", 1.0, False)] * 7
    assert AutolabelConfig().error == 0 and AutolabelConfig().test is None
    assert not settled(clean, 2, 8, Rule(), AutolabelConfig().test)
    assert settled(clean, 2, 8, Rule(), SequentialTest(given_up=0.05, missed=0.05))


def test_a_sequential_test_ends_no_critiques_that_give_no_label_or_say_otherwise():
    test = SequentialTest(given_up=0.05, missed=0.05)
    slips = [
        Assessed("", 0.5, True, (1.0,)),
        Assessed("", 0.0, True, (1.0,)),
        Assessed("", 0.5, True, (1.0,)),
    ]
    assert Rule()(slips) is None and not settled(
        slips, 2, 8, Rule(), test
    )  # one valid 0 where two are wanted
    invented = [Assessed("", 0.0, True, (0.0,))] * 6
    assert not settled(invented, 7, 8, Rule("consensus", 7), test)  # by their weight no evidence at all
    assert settled(invented, 7, 8, Rule("mean"), test)  # which asks nobody what issues are worth
    unread = [Assessed("", None, False)] * 7
    assert not settled(unread, 2, 8, Rule("mean"), test)
    silent = [Assessed("", 0.0, True, (None,))] * 6
    assert not settled(silent, 7, 8, Rule("gate"), test)
