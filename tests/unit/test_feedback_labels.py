"""Votes: every usual spelling, every scale by its ends, and what is not guessed."""

from decimal import Decimal

import pytest

from feedback.labels import Votes, label_of, parse
from feedback.records import Refused
from feedback.scales import SIGN, WORDS, scale_of
from helpers.errors import KitError

UP = ["up", "Up ", "UP", "thumbs up", "Thumbs Up", "thumbs_up", "thumbs-up", "thumbsUp", ":thumbsup:", ":+1:", "👍", "👍🏽", "👍🏿", "yes", "Yes", "Y", "t",
      "true", "TRUE", "True", "like", "Liked", "good", "GOOD", "accepted", "positive", "helpful", "correct", "+1", "1", 1, 1.0, "1.0", True, "✅", "❤️", "upvote",
      ":+1::skin-tone-2:", "👍 thumbs up", "👍👍", "Good response", "Very helpful", Decimal("1.0")]
DOWN = ["down", "Thumbs Down", "thumbs_down", "thumbs-down", "thumbsDown", ":thumbsdown:", "👎", "👎🏻", "no", "No", "n", "f", "false", "FALSE", "dislike",
        "Disliked", "bad", "rejected", "negative", "not helpful", "unhelpful", "incorrect", "0", 0, 0.0, False, "❌", "downvote",
        ":thumbsdown::skin-tone-5:", "Thumbs down 👎", "Bad response", "Not helpful at all"]


@pytest.mark.parametrize("value", UP)
def test_every_usual_spelling_of_a_thumb_up_is_accepted(value):
    assert label_of(value, WORDS) is True


@pytest.mark.parametrize("value", DOWN)
def test_every_usual_spelling_of_a_thumb_down_is_rejected(value):
    assert label_of(value, WORDS) is False


@pytest.mark.parametrize("value", [None, "", "  ", "null", "None", "NaN", "n/a", "-", "—", float("nan"), [], {}, "neutral", "skipped", [None, None]])
def test_where_nobody_voted_there_is_no_label(value):
    assert label_of(value, WORDS) is None


@pytest.mark.parametrize("value", [2, 0.5, "maybe", 10**400, "1e999", float("inf"), {"a": 1}, "that is no answer", "x" * 500, [[[[]]], "q"], b"up", "👍👎", "👍 but"])
def test_what_is_no_vote_is_refused_and_not_guessed(value):
    with pytest.raises(Refused) as refused:
        label_of(value, WORDS)
    assert refused.value.kind == "label"


def votes_of(values):
    votes = Votes()
    for value in values:
        votes.add(value)
    return votes


def each(*values, times=5):
    return list(values) * times


SCALES = {
    "0 and 1": (each(0, 1), "0 and 1; 1 is accepted", [0], [1]),
    "0.0 and 1.0": (each(0.0, 1.0), "0 and 1; 1 is accepted", [0.0], [1.0]),
    "-1 and 1": (each(-1, 1), "-1 and 1; 1 is accepted, 0 is no vote", [-1], [1]),
    ":+1: and :-1:": (each(":+1:", ":-1:"), "-1 and 1; 1 is accepted, 0 is no vote", [":-1:"], [":+1:"]),
    "1 to 3": (each(1, 2, 3, times=7), "ratings 1 to 3; 3 and more are accepted", [1, 2], [3]),
    "0 to 4": (each(0, 1, 2, 3, 4), "ratings 0 to 4; 3 and more are accepted", [0, 1, 2], [3, 4]),
    "1 to 5": (each(1, 2, 3, 4, 5), "ratings 1 to 5; 4 and more are accepted", [1, 3], [4, 5]),
    "1 to 5 with halves": (each(1.5, 3.5, 4.0, "4,5", 5), "ratings 1 to 5; 4 and more are accepted", [1.5, 3.5], [4.0, "4,5"]),
    "stars as signs": (each("★★☆☆☆", "⭐⭐⭐⭐⭐"), "ratings 1 to 5; 4 and more are accepted", ["★★☆☆☆"], ["⭐⭐⭐⭐⭐"]),
    "4/5": (each("2/5", "4/5"), "ratings 1 to 5; 4 and more are accepted", ["2/5"], ["4/5"]),
    "5 stars": (each("1 star", "5 stars"), "ratings 1 to 5; 4 and more are accepted", ["1 star"], ["5 stars"]),
    "half a star to 5": (each(0.5, 3.5, 5), "ratings 0 to 5; 4 and more are accepted", [0.5, 3.5], [5]),
    "1 to 10": (each(1, 4, 7, 10), "ratings 1 to 10; 7 and more are accepted", [1, 6], [7, 10]),
    "2 to 9 of 10": (each(2, 4, 9), "ratings 1 to 10; 7 and more are accepted", [2, 4], [9]),
    "7/10": (each("3/10", "7/10"), "ratings 1 to 10; 7 and more are accepted", ["3/10"], ["7/10"]),
    "0 to 100": (each(0, 35, 80, 100), "ratings 0 to 100; 70 and more are accepted", [35], [80]),
    "85%": (each("15%", "85 %"), "ratings 0 to 100; 70 and more are accepted", ["15%"], ["85%"]),
    "0.0 to 1.0": (each(0.1, 0.55, 0.93), "ratings 0 to 1; 0.7 and more are accepted", [0.1, 0.55], [0.93]),
    "annotators": (each([5, 4], [1, 2]), "ratings 1 to 5; 4 and more are accepted", [[1, 2]], [[5, 4]]),
    "annotators as text": (each("[5, 4]", "(1, 2)"), "ratings 1 to 5; 4 and more are accepted", ["(1, 2)"], ["[5, 4]"]),
    "annotators as objects": (each([{"value": 5}, {"value": 4}], [{"value": 1, "user_id": "x"}]), "ratings 1 to 5; 4 and more are accepted",
                              [[{"value": 1}]], [[{"value": 5}]]),
}


@pytest.mark.parametrize("values, words, rejected, accepted", SCALES.values(), ids=SCALES)
def test_a_scale_is_recognised_from_the_values_ends_and_stated(values, words, rejected, accepted):
    scale = scale_of(votes_of(values), "rating")
    assert scale.words == words
    assert [label_of(value, scale) for value in rejected] == [False] * len(rejected)
    assert [label_of(value, scale) for value in accepted] == [True] * len(accepted)


@pytest.mark.parametrize("values, option", [
    (each(1, 2, 3, times=2), "--scale=1-3 --accept-from=3, or --scale=1-5 --accept-from=4"), (each(2, 3, 4), "--scale=1-5 --accept-from=4"),
    (each(1, 2), "--scale=1-5"), (each(0, 1, 2), "--scale=0-2"), (each(12, 20), "--scale=12-20"), (each(-5, 5), "--scale=-5..5"),
    (each(-0.4, 0.9), "--scale=-1..1"), (each("2/5", "7/10"), "--scale=1-7"),
    (each(1, 4, 6), "--scale=1-6 --accept-from=4, or --scale=1-7 --accept-from=5, or --scale=1-10 --accept-from=7"),
    (each(-0.3, 2.3), "--accept-from=…"), (each(-99, 0, 1, 99), "--accept-from=…"),
])
def test_ends_that_leave_the_scale_open_are_asked_about_with_the_option_to_add(values, option):
    with pytest.raises(KitError) as error:
        scale_of(votes_of(values), "rating")
    assert option in str(error.value) and "'rating'" in str(error.value) and "×)" in str(error.value)


def test_the_options_that_a_message_proposes_are_understood():
    for scale, accept_from in (("1-3", 3), ("1-5", None), ("-5..5", 1), ("-1..1", 0.5), ("0-2", 2), ("1-7", None), ("0-1", 0.5)):
        assert scale_of(votes_of(each(1, 2)), "rating", scale, accept_from).accept
    assert scale_of(votes_of(each(-5, 0, 5)), "rating", "", 1).words == "ratings -5 to 5; 1 and more are accepted"
    for scale in ("fahrenheit", "5-1", "1"):
        with pytest.raises(KitError, match="there is no scale"):
            scale_of(votes_of([1]), "rating", scale)
    with pytest.raises(KitError, match="--accept-from"):
        scale_of(votes_of([1]), "rating", "1-5", 9)


def test_the_threshold_is_the_readers():
    assert label_of(3, scale_of(votes_of([]), "r", "stars", None, 3)) is True
    assert label_of(6, scale_of(votes_of(each(1, 10)), "r", "", 6)) is True
    assert label_of(6, scale_of(votes_of(each(1, 10)), "r", "", None, 3)) is False, "`stars` is for 1 to 5 alone"


def test_annotators_are_averaged_and_an_even_split_is_refused_by_name():
    scale = scale_of(votes_of(each(1, 5)), "rating")
    assert label_of([5, 5, 3], scale) is True and label_of([5, 1, 1], scale) is False
    for value in ([5, 1], [4, 3], [True, False], ["up", "down"]):
        with pytest.raises(Refused) as refused:
            label_of(value, scale)
        assert refused.value.kind == "annotators disagree"
    assert label_of(["up", "up", "down"], WORDS) is True and label_of([None, "down"], WORDS) is False


def test_an_annotator_without_a_vote_does_not_lower_the_mean():
    scale = scale_of(votes_of(each(1, 2, 3, 4, 5)), "rating")
    assert label_of([5, 5, 0], scale) is True and label_of([5, None, 4], scale) is True and label_of([0, 0], scale) is None


def test_a_zero_between_minus_one_and_one_is_no_vote():
    scale = scale_of(votes_of(each(-1, 0, 1)), "rating")
    assert scale is SIGN and label_of(0, scale) is None


def test_a_number_among_words_is_the_fault_not_the_scale():
    assert scale_of(votes_of(["up", "down", "up", 7]), "rating") is WORDS


def test_parse_never_ends_in_anything_but_a_value_error():
    for value in ("[" * 5000, "(" * 5000, "{'a': " * 500, "9" * 190, "٣", "½"):
        try:
            parse(value)
        except ValueError:
            pass
