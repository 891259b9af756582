"""The chat half of composing: opens data sets of conversations that `dataset.build_chat_dataset` has built."""

import sys
from collections.abc import Sequence
from pathlib import Path

from dataset.chat.reader import chat_splits, chat_tokenizer_folder, open_chat_data
from dataset.chat.template import ChatEncoder
from dataset.text.template import ConversationEncoder
from dataset.tokenization.lookup import find_tokenizer, load_tokenizer
from dataset.tokenization.protocol import Tokenizer
from dataset.tokenization.special_tokens import load_chat_tokenizer
from engine.build.puzzles import check_batch_shares
from engine.build.text import TextSource, source_of
from engine.config.schema import ChatConfig, InstructConfig, TextConfig
from engine.runtime.devices import Runtime


def build_chat(config: ChatConfig, runtime: Runtime) -> TextSource:
    """Readers of the data sets at `data_paths`, mixed, and their common tokenizer."""
    check_batch_shares(config, runtime)
    stores = {}
    for split in chat_splits(config.data_paths) or ["train"]:  # with no split at all, opening says what is missing
        stores[split], found = open_chat_data(config.data_paths, split, config.seq_len)
        if runtime.is_main:
            cut = f", {found.chat.truncated} of them truncated, {found.chat.dropped} dropped"
            print(f"{split}: {found.chat.documents} conversations{cut}; {found.chat.tokens} tokens", file=sys.stderr)
    if "train" not in stores:
        open_chat_data(config.data_paths, "train")
    tokenizer = load_chat_tokenizer(chat_tokenizer_folder(config.data_paths))
    return source_of(config, runtime, found.seq_len, tokenizer, train=stores["train"], test=stores.get("test"))


def data_row_length(paths: Sequence[str]) -> int:
    """Positions of the longest rows of these data sets."""
    return max(open_chat_data(paths, split)[1].seq_len for split in chat_splits(paths) or ["train"])


def conversation_template(
    config: TextConfig, tokenizer_path: str | None, checkpoint: Path
) -> tuple[Tokenizer, ChatEncoder | ConversationEncoder, frozenset[int]]:
    """Tokenizer, template and the ids that end an answer, of a checkpoint of chat or of instruction training."""
    if isinstance(config, ChatConfig):
        if tokenizer_path is None:
            raise ValueError(f"{checkpoint} carries no tokenizer. Name one with --tokenizer-path.")
        chat_tokenizer = load_chat_tokenizer(tokenizer_path)
        chat_encoder = ChatEncoder(chat_tokenizer)
        return chat_tokenizer, chat_encoder, chat_encoder.stop_ids
    assert isinstance(config, InstructConfig)
    tokenizer = load_tokenizer(find_tokenizer(config.dataset.tokenizer_path))
    return tokenizer, ConversationEncoder(tokenizer), frozenset([tokenizer.eos_id])
