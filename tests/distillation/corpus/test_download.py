"""The download plans: their shape, and the rows that are made of each kind of record."""

from typing import Any

import pytest

from dataset.text.conversation import parse_record
from src.distillation.corpus.download import check_row
from src.distillation.corpus.plans import BASELINE, CATEGORIES, CURRICULUM

SOURCES = {source.name: source for source in (*CURRICULUM, *BASELINE)}

# A record of each source as its repository has it, and the prompt (or text) and the last answer of its first row.
RECORDS: dict[str, tuple[dict[str, Any], str, str]] = {
    "openhermes": ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, "Q", "A"),
    "ultrachat": (
        {"prompt": "Q", "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, "Q", "A",
    ),
    "slimorca": (
        {"conversations": [{"from": "human", "value": "Q", "weight": 0}, {"from": "gpt", "value": "A", "weight": 1}]},
        "Q", "A",
    ),
    "dolly": ({"instruction": "Do", "context": "this", "response": "A", "category": "x"}, "Do\n\nthis", "A"),
    "code_alpaca": ({"instruction": "Do", "input": "", "output": "A"}, "Do", "A"),
    "magicoder": ({"problem": "Q", "solution": "A", "lang": "python"}, "Q", "A"),
    "apps": ({"question": "Q", "solutions": '["A", "B"]', "starter_code": None}, "Q", "A"),
    "mbpp": ({"text": "Q", "code": "A", "test_list": ["t"]}, "Q\n\nt", "A"),
    "code_search_net": ({"whole_func_string": "def f(): pass", "func_code_string": "x"}, "def f(): pass", ""),
    "numina_cot": ({"problem": "Q", "solution": "A"}, "Q", "A"),
    "metamath": ({"query": "Q", "response": "A"}, "Q", "A"),
    "orca_math": ({"question": "Q", "answer": "A"}, "Q", "A"),
    "mathinstruct": ({"instruction": "Q", "output": "A", "source": "x"}, "Q", "A"),
    "gsm8k": ({"question": "Q", "answer": "A"}, "Q", "A"),
    "squad_v2": ({"context": "C", "question": "Q", "answers": {"text": ["A"], "answer_start": [0]}}, "C\n\nQ", "A"),
    "hotpot_qa": (
        {"context": {"title": ["T"], "sentences": [["one. ", "two."]]}, "question": "Q", "answer": "A"},
        "T: one. two.\n\nQ", "A",
    ),
    "nq_open": ({"question": "Q", "answer": ["A", "B"]}, "Q", "A"),
    "trivia_qa": ({"question": "Q", "answer": {"value": "A", "aliases": []}}, "Q", "A"),
}  # fmt: skip


def test_every_source_has_a_category_a_licence_and_a_file_of_its_own() -> None:
    for plan in (BASELINE, CURRICULUM):
        assert len({(source.category, source.name) for source in plan}) == len(plan)
        for source in plan:
            assert source.category in CATEGORIES and source.license and source.rows > 0
            assert source.card == f"https://huggingface.co/datasets/{source.repo}"
    assert {source.category for source in CURRICULUM} == set(CATEGORIES)


def test_the_first_corpus_is_about_300_000_rows_of_mathematics_and_code() -> None:
    assert [source.name for source in BASELINE] == ["metamath", "code_search_net", "apps", "mbpp"]
    assert {source.category for source in BASELINE} == {"math_reasoning", "code"}
    assert 290_000 < sum(source.rows for source in BASELINE) < 310_000


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_records_become_rows_that_preprocessing_takes(name: str) -> None:
    record, prompt, answer = RECORDS[name]
    row = next(iter(SOURCES[name].read(record)))
    check_row(row)
    if "text" in row:
        assert (row["text"], "") == (prompt, answer)
    else:
        turns = parse_record(row)
        assert (turns[0].text, turns[-1].text) == (prompt, answer)


def test_a_problem_gives_a_row_for_each_of_its_first_solutions() -> None:
    record = {"question": "Q", "solutions": str([f"s{i}" for i in range(30)]).replace("'", '"'), "starter_code": "def"}
    rows = list(SOURCES["apps"].read(record))
    assert [row["response"] for row in rows] == [f"s{i}" for i in range(10)]
    assert {row["prompt"] for row in rows} == {"Q\n\ndef"}


def test_a_question_without_an_answer_in_its_passage_says_so() -> None:
    (row,) = SOURCES["squad_v2"].read({"context": "C", "question": "Q", "answers": {"text": []}})
    assert row["response"] == "The passage does not say."
