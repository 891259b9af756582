"""What a trained language model has to beat: bigrams with back-off, and the answers to similar questions."""

import json
import sys
from collections.abc import Iterator, Sequence
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

Exchange = tuple[NDArray[np.int64], tuple[int, ...]]  # ids of a question, and of its answer
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


class SimilarQuestions:
    """Answers with what the most similar question of training was answered with: the one that shares most tokens, as a
    share of all tokens of both."""

    def __init__(self, known: Sequence[Exchange]) -> None:
        self.answers = [answer for _, answer in known]
        questions = [np.unique(question) for question, _ in known]
        self.sizes = np.array([len(question) for question in questions])
        tokens = np.concatenate(questions)
        order = np.argsort(tokens, kind="stable")
        self.tokens, self.holders = tokens[order], np.repeat(np.arange(len(questions)), self.sizes)[order]

    def answer(self, question: NDArray[np.int64]) -> tuple[int, ...]:
        asked = np.unique(question)
        shared = np.zeros(len(self.answers))
        for token in asked:
            first, last = np.searchsorted(self.tokens, [token, token + 1])
            shared[self.holders[first:last]] += 1
        return self.answers[int(np.argmax(shared / (self.sizes + len(asked) - shared)))]


def exchanges_of(batch: Batch) -> Iterator[Exchange]:
    """What is given and what is supervised of every document of a batch."""
    inputs, labels, documents = (batch[name].numpy() for name in ("inputs", "labels", "documents"))
    is_answer = labels != IGNORE_LABEL_ID
    for row, numbers in enumerate(documents):
        for number in range(numbers.max() + 1):
            here = numbers == number
            yield inputs[row][here & ~is_answer[row]], tuple(labels[row][here & is_answer[row]].tolist())


def compare_with_bigram(options: BigramOptions) -> None:
    """Held-out loss a token of a checkpoint and of bigrams counted on the tokens that it was trained on; and the share of
    answers that are exactly right, of the checkpoint and of answering as the most similar question was answered."""
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
    print("looking for similar questions", file=sys.stderr)
    similar = SimilarQuestions([pair for _, batch, _ in source.data.train_items(1, 0) for pair in exchanges_of(batch)])
    tested = [pair for _, batch, _ in held_out() for pair in exchanges_of(batch) if pair[1]]
    right = sum(similar.answer(question) == answer for question, answer in tested)
    results["similar_question"] = {"exact_accuracy": right / max(1, len(tested)), "questions": len(tested)}
    task = checkpoint.task(source, runtime)
    all_sets = (("test", batch, rows) for _, batch, rows in held_out())
    metrics = evaluate(task, all_sets, ["test"], runtime, num_batches=source.data.num_eval_batches)["test"]
    results["model"] = {name: metrics[name] for name in ("token_loss", "exact_accuracy", "tokens")}
    print(json.dumps(results))
