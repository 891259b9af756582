"""People's conversation files: every form becomes the same turns, and a wrong one is named."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.chat import records as chat_records
from dataset.chat.formats import FORMATS, read_conversations, recognise
from dataset.chat.records import Conversation, Record
from dataset.text.conversation import Turn

S, U, A = (lambda text, role=role: Turn(role, text, role == "assistant") for role in ("system", "user", "assistant"))
HELLO = [U("Hi"), A("Hello!")]


def records(*values: Any, file: str = "data.json") -> list[Record]:
    return [Record(n, Path(file), f"{file}, record {n + 1}", value) for n, value in enumerate(values)]


def parsed(format_name: str, *values: Any) -> list[Conversation]:
    return list(read_conversations(records(*values), format_name))


def turns(format_name: str, *values: Any) -> list[list[Turn]]:
    return [conversation.turns for conversation in parsed(format_name, *values)]


def said(*messages: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in messages]


def shared(*messages: tuple[str, str]) -> dict[str, Any]:
    return {"id": "c1", "conversations": [{"from": name, "value": text} for name, text in messages]}


def node(role: str, text: str, *replies: dict, **more: Any) -> dict[str, Any]:
    return {"role": role, "text": text, "replies": list(replies)} | more


@pytest.mark.parametrize(
    ("format_name", "value", "expected"),
    [
        ("sharegpt", shared(("user", "Hi"), ("assistant", "Hello!")), HELLO),
        ("sharegpt", shared(("human", "Hi"), ("gpt", "Hello!")), HELLO),
        ("sharegpt", shared(("human", "Hi"), ("chatgpt", "Hello!")), HELLO),
        ("sharegpt", shared(("system", "Be kind."), ("human", "Hi"), ("gpt", "Hello!")), [S("Be kind."), *HELLO]),
        ("sharegpt", shared(("human", "Hi"), ("gpt", "Hello!")) | {"system": "Be kind."}, [S("Be kind."), *HELLO]),
        ("sharegpt", shared(("system", ""), ("human", "Hi"), ("gpt", "Hello!")), HELLO),
        ("sharegpt", [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}], HELLO),
        ("sharegpt", shared(("human", ""), ("gpt", "a"), ("gpt", "b")), [U(""), A("a"), A("b")]),
        ("sharegpt", shared(("human", "Hi"), ("gpt", " ")), [U("Hi"), Turn("assistant", " ", False)]),
        ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello!"}, HELLO),
        ("alpaca", {"instruction": "Hi", "output": "Hello!"}, HELLO),
        ("alpaca", {"instruction": "Add.", "input": "1 2", "output": "3"}, [U("Add.\n\n1 2"), A("3")]),
        ("alpaca", {"instruction": "Hi", "output": "Hello!", "system": "Be kind."}, [S("Be kind."), *HELLO]),
        ("openassistant", {"messages": said(("prompter", "Hi"), ("assistant", "Hello!"))}, HELLO),
        ("openassistant", {"messages": said(("user", "Hi"), ("assistant", "Hello!"))}, HELLO),
        ("openassistant", said(("prompter", "Hi"), ("assistant", "Hello!")), HELLO),
        ("openassistant", {"prompt": node("prompter", "Hi", node("assistant", "Hello!"))}, HELLO),
        ("openassistant", node("prompter", "Hi", node("assistant", "Hello!")), HELLO),
        ("openai", {"messages": said(("user", "Hi"), ("assistant", "Hello!"))}, HELLO),
        ("openai", {"messages": said(("developer", "Be kind."), ("user", "Hi"))}, [S("Be kind."), U("Hi")]),
        ("openai", said(("user", "Hi"), ("assistant", "Hello!")), HELLO),
        (
            "openai",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}]},
            [U("Hi")],
        ),
        (
            "openai",
            {"messages": [{"role": "assistant", "content": "a", "weight": 0}, {"role": "assistant", "content": "b"}]},
            [Turn("assistant", "a", False), A("b")],
        ),
    ],
)
def test_record_becomes_turns_and_is_recognised(format_name: str, value: Any, expected: list[Turn]) -> None:
    assert turns(format_name, value) == [expected]
    name, same = recognise(records(value))
    assert [c.turns for c in read_conversations(same, name)] == [expected]


def test_flat_messages_of_a_file_are_one_conversation() -> None:
    first = records(*said(("user", "Hi"), ("assistant", "Hello!")), file="a.json")
    second = records(*said(("user", "And"), ("assistant", "you?")), file="b.json")
    found = list(read_conversations([*first, *second], "openai"))
    assert [c.turns for c in found] == [HELLO, [U("And"), A("you?")]]


def test_endless_flat_list_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_records, "MAX_MESSAGES", 3)
    with pytest.raises(ValueError, match="record 1 .* 3 "):
        parsed("openai", *said(*[("user", "Hi")] * 4))


TREE = node(
    "prompter",
    "root",
    node("assistant", "bad", rank=1),
    node(
        "assistant",
        "good",
        node("prompter", "one", node("assistant", "answer one")),
        node("prompter", "two", node("assistant", "unranked"), node("assistant", "ranked", rank=2)),
        node("prompter", "spam", node("assistant", "never"), deleted=True),
        rank=0,
    ),
    node("assistant", "later", rank=2),
)


def flat(tree: dict[str, Any], parent: str | None = None, tree_id: str | None = None) -> list[dict[str, Any]]:
    own = {key: value for key, value in tree.items() if key != "replies"}
    row = own | {"message_id": f"{parent}/{tree['text']}", "parent_id": parent}
    row |= {"message_tree_id": tree_id} if tree_id else {}
    return [row, *(r for reply in tree["replies"] for r in flat(reply, row["message_id"], tree_id))]


@pytest.mark.parametrize(
    "values",
    [[{"message_tree_id": "t", "prompt": TREE}], [TREE], flat(TREE), flat(TREE, tree_id="t")],
    ids=["prompt", "root", "rows", "rows with a tree's id"],
)
def test_best_ranked_ways_of_a_tree_are_conversations(values: list[Any]) -> None:
    known = Turn("assistant", "good", False)  # learnt in the first way already
    assert turns("openassistant", *values) == [
        [U("root"), A("good"), U("one"), A("answer one")],
        [U("root"), known, U("two"), A("ranked")],
    ]
    assert recognise(records(*values))[0] == "openassistant"


def test_ways_of_a_tree_share_its_number_and_trees_do_not() -> None:
    other = node("prompter", "x", node("assistant", "y"))
    assert [c.number for c in parsed("openassistant", TREE, other)] == [0, 0, 1]
    by_rows = [c.number for c in parsed("openassistant", *flat(TREE), *flat(other))]
    assert by_rows[0] == by_rows[1] != by_rows[2]


def test_deleted_tree_is_left_out() -> None:
    assert turns("openassistant", TREE | {"deleted": True}) == []


def test_rows_of_a_tree_that_are_torn_apart_are_refused() -> None:
    rows = flat(TREE, tree_id="t")
    torn = [*rows[:2], *flat(node("prompter", "x"), tree_id="u"), *rows[2:]]
    with pytest.raises(ValueError, match="record 4: .*'None/root/good'.*'None/root'"):
        parsed("openassistant", *torn)


def test_row_that_replies_to_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = flat(node("prompter", "a", node("assistant", "b")))
    rows[1]["message_id"] = rows[0]["message_id"]
    with pytest.raises(ValueError, match="record 1"):
        parsed("openassistant", *rows)


EXAMPLES = {
    "sharegpt": shared(("human", "Hi"), ("gpt", "Hello!")),
    "alpaca": {"instruction": "Hi", "input": "", "output": "Hello!"},
    "openassistant": {"prompt": node("prompter", "Hi", node("assistant", "Hello!"))},
    "openai": {"messages": said(("user", "Hi"), ("assistant", "Hello!"))},
}


@pytest.mark.parametrize("wanted", FORMATS)
@pytest.mark.parametrize("given_as", FORMATS)
def test_wrong_format_is_told_the_right_one(wanted: str, given_as: str) -> None:
    value = EXAMPLES[wanted]
    if wanted == given_as or (wanted, given_as) == ("openai", "openassistant"):  # the one is a part of the other
        assert turns(given_as, value) == [HELLO]
        return
    with pytest.raises(ValueError, match=rf"record 1: .*{given_as}.*{wanted}"):
        parsed(given_as, value)


@pytest.mark.parametrize("name", FORMATS)
def test_format_is_recognised_and_no_record_is_lost(name: str) -> None:
    found, rest = recognise(records(*[EXAMPLES[name]] * 50))
    assert found == name
    assert len(list(read_conversations(rest, found))) == 50


def test_format_is_that_of_all_first_records() -> None:
    roles = [{"messages": said((role, "Hi"), ("assistant", "Hello!"))} for role in ("user", "prompter")]
    assert recognise(records(*roles))[0] == "openassistant"
    with pytest.raises(ValueError, match="record 2 .*alpaca.*record 1 .*sharegpt"):
        recognise(records(EXAMPLES["sharegpt"], EXAMPLES["alpaca"]))
    with pytest.raises(ValueError, match="sharegpt: 'conversations'"):
        recognise([])


@pytest.mark.parametrize(
    ("format_name", "value", "words"),
    [
        ("sharegpt", shared(("human", "Hi"), ("narrator", "x")), r"record 1 \(id 'c1'\): .*'narrator'.*gpt"),
        ("sharegpt", {"conversations": "Hi"}, "record 1: .*str"),
        ("sharegpt", shared(("human", 5)), "user.*int"),
        ("sharegpt", shared(("human", "\ud800")), "Unicode"),
        ("openai", {"messages": said(("tool", "x"))}, "'tool'.*human"),
        ("openai", {"messages": ["Hi"]}, "message.*str"),
        ("openai", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "'image_url'"),
        ("alpaca", {"instruction": 1, "output": ""}, "user.*int"),
        ("openassistant", node("prompter", "a", node("narrator", "b")), "'narrator'"),
        ("openassistant", {"message_id": 7, "role": "user", "text": "a"}, "message_id 7"),
        ("openai", {"question": "x"}, "record 1: .*question.*sharegpt"),
        ("openai", [], "record 1: .*list"),
        ("openai", "Hi", "record 1: .*'Hi'"),
    ],
)
def test_wrong_record_is_named(format_name: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parsed(format_name, value)


KEYS = (
    *("conversations", "messages", "instruction", "output", "prompt", "replies", "message_id", "parent_id"),
    *("message_tree_id", "role", "content", "text", "from", "value", "id", "weight", "rank", "deleted"),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner | st.sampled_from(["user", "assistant"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.sampled_from([*FORMATS]), st.lists(json_values, max_size=3))
def test_any_json_is_read_or_refused_in_words(format_name: str, values: list[Any]) -> None:
    try:
        found = parsed(format_name, *values)
    except ValueError as error:
        assert "data.json, record" in str(error)
    else:
        assert all(isinstance(turn, Turn) for conversation in found for turn in conversation.turns)
