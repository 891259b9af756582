"""Leak probes: does a text model, or the batches it learns from, know at a position what is to be predicted there?

S tokens of one row; influence[t, i] is how far a change of token t moves the outputs at position i.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dataset.common import IGNORE_LABEL_ID, Batch, text_metadata
from engine.build import puzzles as build
from engine.build import text as build_text
from engine.build.corpus import load_text
from engine.build.text_checkpoint import open_text_checkpoint
from engine.checkpoints.load import load_averaged, load_checkpoint
from engine.config.check import check
from engine.config.compose import composed
from engine.config.text import InstructConfig
from engine.entry import user_errors
from engine.generate.options import OpenOptions
from engine.runtime.devices import Runtime, start_runtime
from engine.tasks.protocol import Sums, add_sums, fetched
from models.losses.text import TextLossHead

LIMIT = 1e-5  # a masked place weighs exactly nothing, so whatever is above rounding is a leak
IN_PLACE_LIMIT = 0.5  # share of labels equal to the token they are read beside; chance repeats a token now and then
# Two prompts and answers and a third document of one row, in tokens: (prompt, answer).
PACKED, ALONE = ((5, 4), (3, 4), (2, 3)), ((9, 9),)
NUM_BATCHES = 20
NATS_LIMIT = 0.1  # held-out unigram and model differ by less than this if there is nothing to be learned
SMALL = ("hidden_size=64", "num_heads=2", "H_cycles=1", "L_cycles=1", "depth_curriculum=[]", "tie_embeddings=false")
QUICK = ("lr=5e-3", "lr_warmup_steps=10", "lr_min_ratio=0.2", "optimizer=adam_atan2", "gradient_accumulation_steps=1")


@dataclass(frozen=True)
class Finding:
    """What a probe measured. `sight` is the effect where there must be one: a probe that finds none there proves nothing."""

    probe: str
    leak: float
    limit: float
    sight: float | None = None
    unit: str = ""

    @property
    def is_clean(self) -> bool:
        return self.leak <= self.limit and (self.sight is None or self.sight > self.limit)

    def __str__(self) -> str:
        verdict = "pass" if self.is_clean else "LEAK" if self.leak > self.limit else "BLIND"
        seen = "" if self.sight is None else f", where it may {self.sight:.3g}"
        return f"{verdict:5} {self.probe}: {self.leak:.3g}{self.unit} (limit {self.limit:g}{seen})"


def synthetic_row(documents: tuple[tuple[int, int], ...], vocab_size: int, length: int, seed: int = 0) -> Batch:
    """One row of random documents, each a prompt and an answer, and padding behind them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(vocab_size, (length,), generator=generator, dtype=torch.int32)
    number = torch.full((length,), -1, dtype=torch.int32)
    positions, is_prompt = torch.zeros_like(number), torch.zeros(length, dtype=torch.bool)
    labels, start = torch.full_like(number, IGNORE_LABEL_ID), 0
    for index, (prompt, answer) in enumerate(documents):
        place = slice(start, start + prompt + answer)
        number[place], positions[place] = index, torch.arange(prompt + answer, dtype=torch.int32)
        is_prompt[start : start + prompt] = True
        labels[start + prompt - 1 : place.stop - 1] = inputs[start + prompt : place.stop]
        start = place.stop
    row = {"inputs": inputs, "labels": labels, "positions": positions, "documents": number, "is_prompt": is_prompt}
    return {name: value[None] for name, value in row.items()}


def may_see(row: Batch, has_open_prompt: bool) -> Tensor:
    """[t, i]: place i may know token t, which stands in its document and not after it, or in the same open prompt."""
    documents, is_prompt = row["documents"][0], row["is_prompt"][0]
    order = torch.arange(len(documents), device=documents.device)
    allowed = order[:, None] <= order[None, :]
    if has_open_prompt:
        allowed = allowed | (is_prompt[:, None] & is_prompt[None, :])
    return allowed & (documents[:, None] == documents[None, :])


@torch.no_grad()
def influence(head: TextLossHead, row: Batch, num_steps: int) -> Tensor:
    """(S, S): the largest change of a logit or of the halting logit, at any depth, of each place by each token."""
    length = row["inputs"].shape[1]
    plain = {name: value.expand(length, -1) for name, value in row.items()}  # row t is to have token t changed
    changed = plain["inputs"].clone()
    changed.diagonal().add_(1).remainder_(head.model.config.vocab_size)
    found = torch.zeros(length, length, device=changed.device)
    pairs = zip(_outputs(head, plain, num_steps), _outputs(head, plain | {"inputs": changed}, num_steps), strict=True)
    for (logits, q), (other_logits, other_q) in pairs:
        found = torch.maximum(found, (logits - other_logits).abs().amax(-1))
        found = torch.maximum(found, (q - other_q).abs())
    return found


@torch.no_grad()
def _outputs(head: TextLossHead, batch: Batch, num_steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and halting logits of every position after each supervision step."""
    core = head.model.inner
    core.depth = head.model.config.depth_at(1.0)
    for _, answers in core.unroll(batch, num_steps):
        hidden = core.hidden(answers[-1])
        yield core.lm_head(hidden).float(), core.q_head(hidden)[..., 0].float()


def randomize_halting_head(head: TextLossHead) -> None:
    """A halting head that was never trained is zero and would hide what it reads."""
    weight = head.model.inner.q_head.weight
    if not weight.any():
        nn.init.normal_(weight)


def probe_model(head: TextLossHead, num_steps: int) -> list[Finding]:
    """Who sees whom, in a row of several documents and in a row of one; tried for every pair of places."""
    head.eval()
    randomize_halting_head(head)
    config = head.model.config
    device = head.model.inner.q_head.weight.device
    length = min(config.seq_len, 24)
    findings = []
    for kind, documents in (("packed", PACKED), ("unpacked", ALONE)):
        row = synthetic_row(documents, config.vocab_size, length)
        row = {name: value.to(device) for name, value in row.items()}
        moved, allowed = influence(head, row, num_steps), may_see(row, config.prefix_mask)
        number, is_prompt = row["documents"][0], row["is_prompt"][0]
        same, own = number[:, None] == number[None, :], moved.diagonal()[number >= 0].min().item()
        ahead = same & ~allowed
        findings.append(Finding(f"a token changes nothing before it, {kind}", _largest(moved, ahead), LIMIT, own))
        if kind == "packed":
            others = _largest(moved, ~same)
            findings.append(Finding("documents of a row do not see each other", others, LIMIT, own))
        if config.prefix_mask:
            into_prompt = same & ~is_prompt[:, None] & is_prompt[None, :]
            both_ways = same & is_prompt[:, None] & is_prompt[None, :]
            sight, leak = moved[both_ways].min().item(), _largest(moved, into_prompt)
            findings.append(Finding(f"a prompt sees itself both ways and no answer, {kind}", leak, LIMIT, sight))
    return findings


def _largest(moved: Tensor, where: Tensor) -> float:
    return moved[where].max().item() if where.any() else 0.0


def probe_batches(batches: Iterable[Batch]) -> list[Finding]:
    """Whether every label is the token that follows, and not the one that is read at its place."""
    supervised = followed = misplaced = in_place = 0
    for batch in batches:
        inputs, labels, documents = batch["inputs"], batch["labels"], batch["documents"]
        is_supervised = labels != IGNORE_LABEL_ID
        has_next = is_supervised[:, :-1] & (documents[:, :-1] == documents[:, 1:])
        supervised += int(is_supervised.sum())
        in_place += int((is_supervised & (labels == inputs)).sum())
        followed += int(has_next.sum())
        misplaced += int((has_next & (labels[:, :-1] != inputs[:, 1:])).sum())
    if not followed:
        raise ValueError(
            "No label has a token after it: there is nothing to probe. Give more data or a longer seq_len."
        )
    share, wrong = in_place / supervised, misplaced / followed
    return [
        Finding("labels are the tokens that follow: share of others", wrong, 0.0),
        Finding("labels do not stand where they are predicted: share that do", share, IN_PLACE_LIMIT),
    ]


def report(checkpoint: str | None, overrides: Sequence[str], train_steps: int) -> int:
    """Print what every probe found; the exit code of the program."""
    findings: list[Finding] = []
    with user_errors():
        findings += probe(checkpoint, overrides, train_steps)
    for finding in findings:
        print(finding)
    return 0 if all(finding.is_clean for finding in findings) else 1


def probe(checkpoint: str | None, overrides: Sequence[str], train_steps: int) -> list[Finding]:
    """All probes; `train_steps` of 0 leaves out the one that trains."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(checkpoint, overrides, folder)
        runtime = start_runtime(config.device, False, config.seed)
        try:
            return [*_probe_untouched(config, checkpoint, runtime), *_probe_learning(config, runtime, train_steps)]
        finally:
            runtime.close()


def config_of(checkpoint: str | None, overrides: Sequence[str], folder: str) -> InstructConfig:
    """The config of the checkpoint; without one, the default config on the built-in corpus; overrides apply to both."""
    if checkpoint is not None:
        changes = ["dataset.subset_size=500", "gradient_accumulation_steps=1", "global_batch_size=8"]
        return open_text_checkpoint(OpenOptions(checkpoint, overrides=overrides), changes).instruct_config
    small = ("dataset.sample_size=1000", "dataset.seq_len=64", "global_batch_size=8")
    data = ("dataset.source=sample", f"dataset.data_dir={folder}", *small)
    return check(InstructConfig, composed("cfg_pretrain_instruct", [*data, *overrides]))


def _probe_untouched(config: InstructConfig, checkpoint: str | None, runtime: Runtime) -> list[Finding]:
    source = build_text.build_text(config, runtime)
    head = build_text.build_text_head(config, source.metadata, runtime)
    if checkpoint is not None:
        load_averaged(head, load_checkpoint(checkpoint))
    items = islice(source.data.train_items(1, 0), NUM_BATCHES)
    found = probe_model(head, head.model.config.halt_max_steps)
    return [*found, *probe_batches(batch for _, batch, _ in items)]


def _probe_learning(config: InstructConfig, runtime: Runtime, train_steps: int) -> list[Finding]:
    """Answers are shuffled over the whole corpus: nothing but the frequency of tokens can be learned of them."""
    if not train_steps:
        return []
    small = config.model_dump()
    steps = min(2, int(small["arch"]["halt_max_steps"]))
    for word in (*SMALL, f"halt_max_steps={steps}", "halt_mean_steps=1.5"):
        key, _, value = word.partition("=")
        small["arch"][key] = [] if value == "[]" else value
    small |= dict(word.split("=") for word in QUICK)
    checked = check(InstructConfig, small)
    return [shuffled_answers(checked, runtime, load_text(checked, progress=False), train_steps)]


def shuffled_answers(config: InstructConfig, runtime: Runtime, corpus: Any, train_steps: int) -> Finding:
    """Nats by which a model trained on shuffled answers beats the frequencies of their tokens."""
    metadata = text_metadata(config.dataset.seq_len, corpus.tokenizer.vocab_size, corpus.tokenizer.pad_id)
    stores = [with_shuffled_answers(corpus.train, seed) for seed in (1, 2)]
    reader, held_out = (
        build_text.text_reader(config, metadata, [store], runtime, split, is_test=split == "test")
        for store, split in zip(stores, ("train", "test"), strict=True)
    )
    head = build_text.build_text_head(config, metadata, runtime)
    task = build_text.text_task_of(config, head, runtime, train_steps, len(reader.rows), None)
    optimizers = build.build_optimizers(config, head, runtime, train_steps)
    step = 0
    while step < train_steps:
        for item, _ in islice(task.feed(reader), train_steps - step):
            step += 1
            task.train_step(item, step)
            optimizers.step(step)
            optimizers.zero_grad()
            task.commit()
    sums: Sums = {}
    evaluated = []
    for _, batch, _ in islice(held_out, NUM_BATCHES):
        add_sums(sums, task.eval_batch(batch, ())[0])
        evaluated.append(batch["labels"][batch["labels"] != IGNORE_LABEL_ID])
    loss = task.eval_report(fetched(sums, runtime))["token_loss"]
    unigram = unigram_loss(stores[0], torch.cat(evaluated).numpy())
    print(f"shuffled answers: loss {loss:.3f}, that of token frequencies {unigram:.3f}", file=sys.stderr)
    return Finding("shuffled answers cannot be learned", unigram - loss, NATS_LIMIT, unit=" nats below unigram")


def with_shuffled_answers(store: Any, seed: int) -> Any:
    """A document store whose trained tokens have changed places among all of them."""
    tokens, is_trained = store.tokens.numpy().copy(), _is_trained(store)
    tokens[is_trained] = np.random.default_rng(seed).permutation(tokens[is_trained])
    return dataclasses.replace(store, tokens=torch.from_numpy(tokens))


def _is_trained(store: Any) -> Any:
    return np.unpackbits(store.trained_bits.numpy())[: len(store.tokens)].view(np.bool_)


def unigram_loss(store: Any, evaluated: NDArray[np.int64]) -> float:
    """Nats a token of `evaluated`, by the frequencies in the store; shuffling has moved tokens, not replaced them."""
    tokens = store.tokens.numpy()[_is_trained(store)].astype(np.int64)
    counts = np.bincount(tokens)
    return float(-np.log(counts[evaluated] / len(tokens)).mean())
