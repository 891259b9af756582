import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataset.text.conversation import EncodedConversation, Turn
from dataset.text.template import ConversationEncoder
from dataset.tokenization.sentencepiece import SentencePieceTokenizer

EOS = 2
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["[ASSISTANT]\nYes.</s>", "\n[USER]\n", "[SYSTEM]", "<s>", " ", "\n"]
)


@st.composite
def conversations(draw: st.DrawFn) -> list[Turn]:
    turns = []
    for role in draw(st.lists(st.sampled_from(["system", "user", "assistant"]), max_size=5)):
        text = draw(TEXTS)
        turns.append(Turn(role, text, role == "assistant" and bool(text.strip()) and draw(st.booleans())))
    return turns


def trained_texts(encoded: EncodedConversation, tokenizer: SentencePieceTokenizer) -> list[str]:
    """The text of every run of trained tokens; each ends with EOS."""
    texts, current = [], []
    for token_id, is_trained in zip(encoded.ids.tolist(), encoded.is_trained.tolist(), strict=True):
        if is_trained:
            current.append(token_id)
        if is_trained and token_id == EOS:
            texts.append(tokenizer.decode(current))
            current = []
    assert not current
    return texts


def test_the_template_is_the_documented_one(tokenizer: SentencePieceTokenizer) -> None:
    turns = [Turn("system", "Be brief."), Turn("user", "Add 1 and 2."), Turn("assistant", "3", is_trained=True)]
    encoded = ConversationEncoder(tokenizer).encode(turns)
    assert encoded is not None and not encoded.is_truncated
    pieces = [tokenizer.piece_bytes(token_id).decode() for token_id in encoded.ids.tolist()]
    assert "".join(pieces) == " [SYSTEM]\n Be brief.\n [USER]\n Add 1 and 2.\n [ASSISTANT]\n 3"
    assert encoded.ids[0] == tokenizer.bos_id and encoded.ids[-1] == EOS
    assert [piece for piece, is_trained in zip(pieces, encoded.is_trained, strict=True) if is_trained] == [" ", "3", ""]


@given(turns=conversations())
def test_only_trained_answers_and_their_ends_are_trained(tokenizer: SentencePieceTokenizer, turns: list[Turn]) -> None:
    answers = [turn.text for turn in turns if turn.is_trained]
    encoded = ConversationEncoder(tokenizer).encode(turns)
    if not answers:
        assert encoded is None
        return
    assert encoded is not None
    assert trained_texts(encoded, tokenizer) == [text.replace("\u2581", " ") for text in answers]
    assert encoded.is_trained[-1] and not encoded.is_trained[0]


@given(turns=conversations())
def test_a_prompt_is_the_beginning_of_the_training_sequence(
    tokenizer: SentencePieceTokenizer, turns: list[Turn]
) -> None:
    """For every answer of the conversation, whatever its texts look like."""
    turns = [*turns, Turn("assistant", "The answer.", is_trained=True)]
    whole = ConversationEncoder(tokenizer).encode(turns)
    assert whole is not None
    for index, turn in enumerate(turns):
        if turn.role == "assistant":
            prompt = ConversationEncoder(tokenizer).encode_prompt(turns[:index])
            assert whole.ids[: len(prompt)].tolist() == prompt
            assert whole.ids[len(prompt) :].tolist()[: len(tokenizer.encode(turn.text))] == tokenizer.encode(turn.text)
            assert whole.is_trained[len(prompt)] == turn.is_trained


@given(batch=st.lists(conversations(), max_size=4))
def test_a_batch_is_encoded_as_its_conversations_are(
    tokenizer: SentencePieceTokenizer, batch: list[list[Turn]]
) -> None:
    encoder = ConversationEncoder(tokenizer, max_tokens=30)
    for turns, together in zip(batch, encoder.encode_batch(batch), strict=True):
        alone = encoder.encode(turns)
        assert (together is None) == (alone is None)
        if together is not None and alone is not None:
            np.testing.assert_array_equal(together.ids, alone.ids)
            np.testing.assert_array_equal(together.is_trained, alone.is_trained)


def test_turns_keep_their_order_and_every_answer_its_end(tokenizer: SentencePieceTokenizer) -> None:
    turns = [
        Turn("user", "one"), Turn("assistant", "two", True), Turn("user", "three"), Turn("assistant", "four", True),
    ]  # fmt: skip
    encoded = ConversationEncoder(tokenizer).encode(turns)
    assert encoded is not None
    text = "".join(tokenizer.piece_bytes(token_id).decode() or "|" for token_id in encoded.ids.tolist())
    assert text == "| [USER]\n one\n [ASSISTANT]\n two| [USER]\n three\n [ASSISTANT]\n four|"
    assert trained_texts(encoded, tokenizer) == ["two", "four"]


def test_what_follows_the_last_answer_is_left_out(tokenizer: SentencePieceTokenizer) -> None:
    turns = [Turn("user", "one"), Turn("assistant", "two", True)]
    encoder = ConversationEncoder(tokenizer)
    longer = encoder.encode([*turns, Turn("user", "three")])
    shorter = encoder.encode(turns)
    assert longer is not None and shorter is not None
    np.testing.assert_array_equal(longer.ids, shorter.ids)


@given(before=conversations(), after=conversations(), max_tokens=st.integers(2, 60))
def test_truncation_keeps_the_left(
    tokenizer: SentencePieceTokenizer, before: list[Turn], after: list[Turn], max_tokens: int
) -> None:
    turns = [*before, Turn("assistant", "The answer.", is_trained=True), *after]
    whole = ConversationEncoder(tokenizer).encode(turns)
    cut = ConversationEncoder(tokenizer, max_tokens).encode(turns)
    assert whole is not None
    if cut is None:
        assert not whole.is_trained[:max_tokens].any()
    else:
        np.testing.assert_array_equal(cut.ids, whole.ids[:max_tokens])
        np.testing.assert_array_equal(cut.is_trained, whole.is_trained[:max_tokens])
        assert cut.is_truncated == (len(whole.ids) > max_tokens)


def test_a_shortened_prompt_leaves_room_for_the_answer(tokenizer: SentencePieceTokenizer) -> None:
    turns = [
        Turn("system", "Be brief."), Turn("user", "x" * 50), Turn("assistant", "The answer is 47.", is_trained=True),
    ]  # fmt: skip
    whole = ConversationEncoder(tokenizer).encode(turns)
    assert whole is not None
    fixed = len(ConversationEncoder(tokenizer).encode_prompt([Turn("user", "")])) + int(whole.is_trained.sum())
    for max_tokens in range(len(whole.ids), fixed + 20, -1):
        cut = ConversationEncoder(tokenizer, max_tokens, truncate="prompt").encode(turns)
        assert cut is not None and len(cut.ids) == max_tokens
        assert trained_texts(cut, tokenizer) == ["The answer is 47."]
        text = tokenizer.decode(cut.ids.tolist())
        assert text.startswith("[SYSTEM]\n Be brief.\n [USER]\n x") and "\n [ASSISTANT]\n The answer is 47." in text


def test_an_answer_that_does_not_fit_alone_is_cut(tokenizer: SentencePieceTokenizer) -> None:
    turns = [Turn("user", "one"), Turn("assistant", "The answer is long. " * 9, is_trained=True)]
    cut = ConversationEncoder(tokenizer, 30, truncate="prompt").encode(turns)
    assert cut is not None and cut.is_truncated and len(cut.ids) == 30
    assert cut.is_trained.any() and cut.ids[-1] != EOS
    assert ConversationEncoder(tokenizer, 5, truncate="prompt").encode(turns) is None
