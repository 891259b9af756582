from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset.chat.template import MIN_TOKENS, ChatEncoder
from dataset.text.conversation import EncodedConversation, Turn
from dataset.tokenization.special_tokens import ChatTokenizer, open_chat_tokenizer

SYSTEM = Turn("system", "sys")


@pytest.fixture(scope="module")
def letters() -> ChatTokenizer:
    """A token a letter."""
    return open_chat_tokenizer("train:265", texts=lambda: ["abc"])


@st.composite
def conversations(draw: st.DrawFn) -> list[Turn]:
    turns = []
    for role in draw(st.lists(st.sampled_from(["system", "user", "assistant", "assistant"]), min_size=1, max_size=8)):
        text = draw(st.sampled_from("abcdefgh")) * draw(st.integers(0, 12))
        turns.append(Turn(role, text, role == "assistant" and draw(st.booleans())))
    return turns


def chat(*lengths: int, system: bool = False) -> list[Turn]:
    """Turns of the given lengths, each of a letter of its own; questions and answers alternate."""
    turns = [
        Turn("assistant" if index % 2 else "user", chr(ord("a") + index) * length, is_trained=index % 2 == 1)
        for index, length in enumerate(lengths)
    ]
    return [SYSTEM, *turns] if system else turns


def written(encoded: EncodedConversation, tokenizer: ChatTokenizer) -> str:
    names = {token_id: name.strip("<|>").encode() for name, token_id in tokenizer.special_ids.items()}
    short = {
        b"user": b"U",
        b"enduser": b".",
        b"assistant": b"A",
        b"endassistant": b"!",
        b"sep": b" ",
        b"endoftext": b"$",
    }
    short |= {b"system": b"S", b"endsystem": b"."}
    letters = [
        short[names[index]] if index in names else tokenizer.piece_bytes(index) for index in encoded.ids.tolist()
    ]
    return b"".join(letters).decode()


def all_written(pieces: Sequence[EncodedConversation], tokenizer: ChatTokenizer) -> list[str]:
    return [written(piece, tokenizer) for piece in pieces]


@pytest.mark.parametrize(
    ("max_tokens", "expected"),
    [
        (23, ["Uaaa. Abb! Uccc. Addd!$"]),
        (22, ["Uaaa. Abb! Uccc. Addd!"]),  # no room for the end of the conversation
        (21, ["Uaaa. Abb!"]),  # none for the end of the last answer
        (11, ["Uaaa. Abb!"]),
        (10, ["Uaaa. Abb!"]),
        (9, ["Uaaa. Abb"]),  # no answer is whole
        (8, ["Uaaa. Ab"]),
    ],
)
def test_truncation_ends_with_a_whole_answer(letters: ChatTokenizer, max_tokens: int, expected: list[str]) -> None:
    pieces = ChatEncoder(letters, max_tokens).encode(chat(3, 2, 3, 3))
    assert all_written(pieces, letters) == expected
    assert [piece.is_truncated for piece in pieces] == [max_tokens < 23]


def test_truncation_of_everything_ends_with_a_whole_answer_too(letters: ChatTokenizer) -> None:
    pieces = ChatEncoder(letters, 14, loss_on="all").encode(chat(3, 2, 3, 3))
    assert all_written(pieces, letters) == ["Uaaa. Abb!"] and pieces[0].is_trained.all()
    assert all_written(ChatEncoder(letters, 8, loss_on="all").encode(chat(9, 2)), letters) == ["Uaaaaaaa"]


def test_an_answer_that_is_not_trained_is_no_end(letters: ChatTokenizer) -> None:
    turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "dddd", is_trained=True)]
    assert all_written(ChatEncoder(letters, 16).encode(turns), letters) == ["Ua. Ab! Uc. Addd"]


@pytest.mark.parametrize("long", ["truncate", "split", "drop"])
def test_what_comes_after_the_last_answer_takes_no_room(letters: ChatTokenizer, long: str) -> None:
    turns = [*chat(3, 2), Turn("user", "c" * 50)]
    (piece,) = ChatEncoder(letters, 10, long=long).encode(turns)
    assert written(piece, letters) == "Uaaa. Abb!" and not piece.is_truncated


def test_a_conversation_without_room_for_its_answer_is_left_out_and_counted(letters: ChatTokenizer) -> None:
    assert ChatEncoder(letters, 10).encode_counted(chat(20, 2)) == ([], 4)


def test_long_conversations_are_dropped_and_counted(letters: ChatTokenizer) -> None:
    encoder = ChatEncoder(letters, 22, long="drop")
    assert encoder.encode_counted(chat(3, 2, 3, 3)) == ([], 8)
    pieces, lost = encoder.encode_counted(chat(3, 2, 3, 2))
    assert all_written(pieces, letters) == ["Uaaa. Abb! Uccc. Add!$"] and lost == 0


@pytest.mark.parametrize(
    ("max_tokens", "expected"),
    [
        (30, ["Ssys. Ua. Ab! Uc. Ad! Ue. Af!$"]),
        (29, ["Ssys. Ua. Ab! Uc. Ad!", "Ssys. Ue. Af!$"]),
        (22, ["Ssys. Ua. Ab! Uc. Ad!", "Ssys. Ue. Af!$"]),
        (20, ["Ssys. Ua. Ab!", "Ssys. Uc. Ad!", "Ssys. Ue. Af!$"]),
        (14, ["Ssys. Ua. Ab!", "Ssys. Uc. Ad!", "Ssys. Ue. Af!$"]),
    ],
)
def test_a_long_conversation_is_split_between_exchanges(
    letters: ChatTokenizer, max_tokens: int, expected: list[str]
) -> None:
    turns = chat(1, 1, 1, 1, 1, 1, system=True)
    pieces, lost = ChatEncoder(letters, max_tokens, long="split").encode_counted(turns)
    assert all_written(pieces, letters) == expected and lost == 0
    assert not any(piece.is_truncated for piece in pieces)


def test_pieces_without_a_system_turn_begin_with_their_question(letters: ChatTokenizer) -> None:
    pieces = ChatEncoder(letters, 9, long="split").encode(chat(1, 1, 1, 1))
    assert all_written(pieces, letters) == ["Ua. Ab!", "Uc. Ad!$"]


def test_turns_of_one_role_stay_together(letters: ChatTokenizer) -> None:
    turns = [Turn("user", "a"), Turn("user", "b"), *[Turn("assistant", text, True) for text in "cd"], *chat(1, 1)]
    pieces = ChatEncoder(letters, 16, long="split").encode(turns)
    assert all_written(pieces, letters) == ["Ua. Ub. Ac! Ad!", "Ua. Ab!$"]


@pytest.mark.parametrize(
    ("turns", "max_tokens", "expected", "lost"),
    [
        (chat(12, 2, 1, 1), 14, ["Uaaaaaaa. Abb!", "Uc. Ad!$"], 0),  # a question that is too long leaves room
        (chat(2, 20, 1, 1), 14, ["Uaa. Abbbbbbbb", "Uc. Ad!$"], 13),  # so does not an answer
        (chat(20, 20), 14, ["Uaaa. Abbbbbbb"], 15),  # half each
        (chat(4, 1, system=True), 14, ["Ss. Uaa. Ab!$"], 0),  # texts in proportion
    ],
)
def test_an_exchange_that_does_not_fit_is_cut(
    letters: ChatTokenizer, turns: list[Turn], max_tokens: int, expected: list[str], lost: int
) -> None:
    pieces, found = ChatEncoder(letters, max_tokens, long="split").encode_counted(turns)
    assert all_written(pieces, letters) == expected
    assert found == lost and pieces[0].is_truncated


@given(turns=conversations(), max_tokens=st.integers(MIN_TOKENS, 50), loss_on=st.sampled_from(["assistant", "all"]))
@pytest.mark.parametrize("long", ["truncate", "split", "drop"])
def test_pieces_fit_and_lost_tokens_are_counted(
    letters: ChatTokenizer, turns: list[Turn], max_tokens: int, loss_on: str, long: str
) -> None:
    whole = ChatEncoder(letters, loss_on=loss_on).encode(turns)
    pieces, lost = ChatEncoder(letters, max_tokens, loss_on=loss_on, long=long).encode_counted(turns)
    total = sum(int(piece.is_trained.sum()) for piece in whole)
    kept = sum(int(piece.is_trained.sum()) for piece in pieces)
    assert kept + lost >= total and 0 <= lost <= total
    if loss_on == "assistant" or long != "split":  # else system turns count once a piece
        assert kept + lost == total
    for piece in pieces:
        assert len(piece.ids) == len(piece.is_trained) <= max_tokens
        assert piece.is_trained[-1]
        assert written(piece, letters)[0] in "SUA", "a piece begins with a turn"
    if whole and len(whole[0].ids) <= max_tokens:
        (piece,) = pieces
        np.testing.assert_array_equal(piece.ids, whole[0].ids)
        assert not piece.is_truncated and lost == 0
    borders = len(pieces) - 1 if loss_on == "all" else 0  # separators that stand between two pieces
    if lost > borders and pieces:
        assert any(piece.is_truncated for piece in pieces), "what is cut is marked"


@given(turns=conversations(), max_tokens=st.integers(40, 60))
def test_splitting_keeps_every_answer_where_exchanges_fit(
    letters: ChatTokenizer, turns: list[Turn], max_tokens: int
) -> None:
    encoder = ChatEncoder(letters, max_tokens, long="split")
    pieces, lost = encoder.encode_counted(turns)
    if not any(piece.is_truncated for piece in pieces):
        answers = "".join(f"{turn.text}!" for turn in turns if turn.is_trained)
        ends = "$" if turns[-1].is_trained else ""
        found = "".join(
            written(EncodedConversation(piece.ids[piece.is_trained], piece.is_trained, False), letters)
            for piece in pieces
        )
        assert found == answers + ends and lost == 0
