"""Shows conversations of a data set the way a model gets them."""

import re
from pathlib import Path

import numpy as np

from dataset.chat.reader import chat_tokenizer_folder, open_chat_data
from dataset.chat.template import coloured
from dataset.text.conversation import EncodedConversation
from dataset.tokenization.special_tokens import load_chat_tokenizer

COLOURS = re.compile("\x1b\\[[0-9;]*m")


def show_samples(path: Path, split: str, count: int, seed: int, in_colour: bool) -> str:
    """Some conversations of a split, drawn by `seed`, each under a line that says what it is."""
    documents, metadata = open_chat_data([path], split)
    tokenizer = load_chat_tokenizer(chat_tokenizer_folder([path]))
    drawn = np.random.default_rng(seed).permutation(len(documents))[:count]
    shown = [f"{path}, {split}: {len(drawn)} of {len(documents)} documents, loss on {metadata.chat.loss_on}"]
    for index in sorted(drawn.tolist()):
        ids, is_trained = documents.document(index)
        text = coloured(EncodedConversation(ids, is_trained, is_truncated=False), tokenizer)
        about = f"--- document {index}: {len(ids)} tokens, {int(is_trained.sum())} supervised ---"
        shown += [about, text if in_colour else COLOURS.sub("", text)]
    return "\n".join(shown)
