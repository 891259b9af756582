"""What a bigram model with back-off knows: the yardstick that a trained language model has to beat."""

import json
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset.common import IGNORE_LABEL_ID, Batch
from engine.build.held_out import check_split
from engine.build.text import build_text
from engine.build.text_checkpoint import open_text_checkpoint
from engine.generate.options import BigramOptions
from engine.runtime.devices import start_runtime
from engine.train.evaluate import evaluate

DISCOUNT = 0.75  # taken from every seen pair and given to the unigram


class Bigram:
    """Absolute discounting: seen pairs keep their counts less a discount, the rest follows the unigram (add one)."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.pairs: list[NDArray[np.int64]] = []

    def add(self, before: NDArray[np.int64], token: NDArray[np.int64]) -> None:
        self.pairs.append(before.astype(np.int64) * self.vocab_size + token)

    def count(self) -> None:
        """Counts are complete; sort them for look-up."""
        self.keys, self.counts = np.unique(np.concatenate(self.pairs), return_counts=True)
        before, token = np.divmod(self.keys, self.vocab_size)
        self.totals = np.bincount(before, weights=self.counts, minlength=self.vocab_size)
        self.followers = np.bincount(before, minlength=self.vocab_size)
        unigram = np.bincount(token, weights=self.counts, minlength=self.vocab_size) + 1
        self.unigram = unigram / unigram.sum()

    def losses(self, before: NDArray[np.int64], token: NDArray[np.int64]) -> NDArray[np.float64]:
        """Negative log-likelihood of each token after its predecessor, in nats."""
        keys = before.astype(np.int64) * self.vocab_size + token
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        seen = np.where(self.keys[place] == keys, self.counts[place] - DISCOUNT, 0.0)
        totals = np.maximum(self.totals[before], 1)
        left = np.where(self.totals[before] > 0, DISCOUNT * self.followers[before] / totals, 1.0)
        loss: NDArray[np.float64] = -np.log(seen / totals + left * self.unigram[token])
        return loss


def pairs_of(batch: Batch, only_trained: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(token, next token) inside documents; `only_trained`: where the next one is supervised."""
    inputs, labels = batch["inputs"].numpy(), batch["labels"].numpy()
    if only_trained:
        chosen = labels != IGNORE_LABEL_ID
        return inputs[chosen], labels[chosen]
    documents = batch["documents"].numpy()
    same = (documents[:, :-1] == documents[:, 1:]) & (documents[:, :-1] >= 0)
    trained_ends = labels != IGNORE_LABEL_ID
    trained_ends[:, :-1] &= ~same  # the last label of a document stands in no input
    before = np.concatenate((inputs[:, :-1][same], inputs[trained_ends]))
    return before, np.concatenate((inputs[:, 1:][same], labels[trained_ends]))


def compare_with_bigram(options: BigramOptions) -> None:
    """Held-out loss a token of a checkpoint and of bigrams counted on the tokens that it was trained on."""
    checkpoint = open_text_checkpoint(options.opening, ["epochs=1", "eval_interval=null"])
    config = checkpoint.instruct_config
    check_split(checkpoint.stored, config, allow_other=options.allow_other_split)
    runtime = start_runtime(config.device, config.compile, config.seed)
    source = build_text(config, runtime)
    held_out = source.data.eval_items
    if held_out is None:
        raise ValueError("There is no held-out split to compare on. Train with a dataset.test_ratio above 0.")
    results: dict[str, Any] = {"checkpoint": str(checkpoint.path)}
    for name, only_trained in (("bigram_of_all_tokens", False), ("bigram_of_answers", True)):
        print(f"counting {name}", file=sys.stderr)
        model = Bigram(source.tokenizer.vocab_size)
        for _, batch, _ in source.data.train_items(1, 0):
            model.add(*pairs_of(batch, only_trained))
        model.count()
        losses = np.concatenate([model.losses(*pairs_of(batch, only_trained=True)) for _, batch, _ in held_out()])
        results[name] = {"token_loss": float(losses.mean()), "pairs": int(model.counts.sum())}
    task = checkpoint.task(source, runtime)
    (metrics,) = evaluate(task, held_out(), source.data.eval_sets, runtime).values()
    results["model"] = {"token_loss": metrics["token_loss"], "tokens": metrics["tokens"]}
    print(json.dumps(results))
