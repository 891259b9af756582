"""Probes for leaks: does a text model, or the batches it learns from, know at a place what is to be predicted there?

S tokens of one row; influence[t, i] is how far a change of token t moves what the model says at place i.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dataset.common import IGNORE_LABEL_ID, Batch
from models.losses.text import TextLossHead

LIMIT = 1e-5  # a masked place weighs exactly nothing, so whatever is above rounding is a leak
IN_PLACE_LIMIT = 0.5  # share of labels equal to the token they are read beside; chance repeats a token now and then
# Two prompts and answers and a third document of one row, in tokens: (prompt, answer).
PACKED, ALONE = ((5, 4), (3, 4), (2, 3)), ((9, 9),)


@dataclass(frozen=True)
class Finding:
    """What a probe measured. `sight` is an effect that must be there: a probe that sees nothing proves nothing."""

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


def made_up_row(documents: tuple[tuple[int, int], ...], vocab_size: int, length: int, seed: int = 0) -> Batch:
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
    pairs = zip(_said(head, plain, num_steps), _said(head, plain | {"inputs": changed}, num_steps), strict=True)
    for (logits, q), (other_logits, other_q) in pairs:
        found = torch.maximum(found, (logits - other_logits).abs().amax(-1))
        found = torch.maximum(found, (q - other_q).abs())
    return found


@torch.no_grad()
def _said(head: TextLossHead, batch: Batch, num_steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and halting logits of every place after each supervision step."""
    core = head.model.inner
    core.depth = head.model.config.depth_at(1.0)
    for _, answers in core.unroll(batch, num_steps):
        hidden = core.hidden(answers[-1])
        yield core.lm_head(hidden).float(), core.q_head(hidden)[..., 0].float()


def wake(head: TextLossHead) -> None:
    """A halting head that was never trained is zero and would hide what it reads."""
    weight = head.model.inner.q_head.weight
    if not weight.any():
        nn.init.normal_(weight)


def probe_model(head: TextLossHead, num_steps: int) -> list[Finding]:
    """Who sees whom, in a row of several documents and in a row of one; tried for every pair of places."""
    head.eval()
    wake(head)
    config = head.model.config
    device = head.model.inner.q_head.weight.device
    length = min(config.seq_len, 24)
    findings = []
    for kind, documents in (("packed", PACKED), ("unpacked", ALONE)):
        row = made_up_row(documents, config.vocab_size, length)
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
