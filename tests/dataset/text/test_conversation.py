from typing import Any

import pytest

from dataset.text.conversation import Turn, has_answer, parse_record, what_is_missing


def message(role: str, text: Any, **more: Any) -> dict[str, Any]:
    return {"from": role, "value": text, **more}


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": [message("system", "s"), message("human", "q"), message("gpt", "a")]},
        {
            "conversations": [
                message("system", "s", weight=None), message("human", "q", weight=0.0), message("gpt", "a", weight=1.0),
            ]
        },
        {
            "messages": [
                {"role": "system", "content": "s"}, {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a"},
            ]
        },
        {"system_prompt": "s", "question": "q", "response": "a", "id": 1},
        {"system": "s", "prompt": "q", "answer": "a"},
        {
            "messages": [
                {"role": "developer", "text": "s"}, {"role": "prompter", "content": ["q"]},
                {"role": "model", "content": [{"type": "text", "text": "a"}]},
            ]
        },
    ],
)  # fmt: skip
def test_records_of_every_form_give_the_same_turns(record: dict[str, Any]) -> None:
    assert parse_record(record) == [Turn("system", "s"), Turn("user", "q"), Turn("assistant", "a", is_trained=True)]


def test_an_empty_system_prompt_is_no_turn() -> None:
    assert parse_record({"system_prompt": "", "prompt": "q", "response": "a"})[0] == Turn("user", "q")


def test_an_answer_of_weight_zero_is_not_trained() -> None:
    first, second = message("gpt", "a", weight=0), message("gpt", "b", weight=1)
    turns = parse_record({"conversations": [message("human", "q"), first, message("human", "r"), second]})
    assert [turn.is_trained for turn in turns] == [False, False, False, True]


@pytest.mark.parametrize("answer", ["", " \n", None])
def test_a_blank_answer_is_no_answer(answer: str | None) -> None:
    assert not has_answer(parse_record({"prompt": "q", "response": answer}))


def test_a_question_that_is_null_is_missing_and_an_empty_one_is_not() -> None:
    turns = parse_record({"prompt": None, "response": "a"})
    assert "question" in (what_is_missing(turns) or "")
    assert "question" in (what_is_missing(turns, needs_answer=False) or "")
    assert what_is_missing(parse_record({"prompt": "", "response": "a"})) is None
    assert "answer" in (what_is_missing([], needs_answer=False) or "")


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ([], "JSON object.*list"),
        ({"text": "q"}, "text.*conversations"),
        ({"prompt": "q"}, "fields prompt"),
        ({"conversations": "q"}, "list.*str"),
        ({"conversations": ["q"]}, "from.*str"),
        ({"conversations": [message("tool", "x")]}, "'tool'.*human"),
        ({"conversations": [{"from": ["gpt"], "value": "a"}]}, r"\['gpt'\]"),
        ({"conversations": [message("gpt", 5)]}, "assistant.*int"),
        ({"conversations": [message("gpt", "a", weight=0.5)]}, "weight 0.5"),
        ({"prompt": "q\ud800", "response": "a"}, "user.*Unicode"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(record: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_record(record)
