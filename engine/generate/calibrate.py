"""Finds how early tokens may leave the recursion so that held-out loss rises by no more than was asked."""

import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataset.common import Batch
from engine.build.corpus import load_text
from engine.build.held_out import check_split
from engine.build.text import HeldOut
from engine.build.text_checkpoint import load_model
from engine.checkpoints.load import load_checkpoint
from engine.config.text import InstructConfig
from engine.generate.decode import Decoding
from engine.generate.exits import MIN_STEPS, best_kind, evidence, passes, write_thresholds
from engine.generate.options import CalibrateOptions, DecodeOptions, ExitKind, ExitRule
from models.act import ActModel
from models.kv_cache import cast_for_reading
from models.losses.text import Supervision

CANDIDATES = 400  # thresholds that are tried
SURE = 2.0  # standard errors that the rise of the loss must stay below the asked one
ROWS = 16  # conversations that are read at once
TOKENS = 1024  # tokens whose logits exist at once
STRICTER = (1.0, 0.5, 0.25, 0.0)  # shares of the asked rise, tried until real decoding stays below it
NEVER: dict[ExitKind, float] = {"kl": 0.0, "margin": 2.0, "head": 2.0}  # thresholds that let nothing leave


@dataclass(frozen=True)
class Trace:
    """What every supervision step knew of every answer token. K steps, T tokens."""

    losses: Tensor  # (K, T)
    evidence: dict[ExitKind, Tensor]  # each (K, T)
    document: NDArray[np.int64]  # (T,) conversation of each token

    def depths(self, rule: ExitRule) -> Tensor:
        """Steps that each token takes under the rule, (T,)."""
        assert rule.kind != "none"
        found = passes(rule, self.evidence[rule.kind])
        found[: MIN_STEPS[rule.kind] - 1] = False
        found[-1] = True
        return found.int().argmax(0) + 1

    def rise(self, depths: Tensor) -> NDArray[np.float64]:
        """How much more each token loses than at full depth."""
        losses = self.losses.gather(0, (depths - 1)[None])[0]
        return (losses - self.losses[-1]).double().numpy()


@torch.inference_mode()
def traced(model: ActModel, texts: HeldOut, documents: Sequence[int], num_steps: int) -> Trace:
    """Teacher-forced evaluation of these conversations at every depth."""
    parts, conversations = [], []
    for first in range(0, len(documents), ROWS):
        rows = texts.batch(documents[first : first + ROWS])
        batch = {name: part.to(model.inner.q_head.weight.device) for name, part in rows.items()}
        at = Supervision.of(batch)
        parts.append(_numbers_by_step(model, batch, at, num_steps).cpu())
        conversations.append(at.document.cpu().numpy() + first)
    losses, *found = torch.cat(parts, dim=2)
    return Trace(losses, dict(zip(get_args(ExitKind), found, strict=True)), np.concatenate(conversations))


def _numbers_by_step(model: ActModel, batch: Batch, at: Supervision, num_steps: int) -> Tensor:
    """Loss, and evidence of every kind of exit, after each step at each token: (4, K, T)."""
    core, steps, before = model.inner, [], None
    for _, answers in core.unroll(batch, num_steps):
        hidden = core.hidden(answers[-1]).flatten(0, 1)[at.places]
        chunks = []
        for place in (slice(first, first + TOKENS) for first in range(0, len(hidden), TOKENS)):
            now, q_halt = core.lm_head(hidden[place]).float(), core.q_head(hidden[place]).float()[:, 0]
            old = now if before is None else core.lm_head(before[place]).float()
            loss = torch.nn.functional.cross_entropy(now, at.labels[place], reduction="none")
            chunks.append(torch.stack([loss, *(evidence(kind, now, old, q_halt) for kind in get_args(ExitKind))]))
        steps.append(torch.cat(chunks, dim=1))
        before = hidden
    return torch.stack(steps, dim=1)


def fitted(trace: Trace, kind: ExitKind, max_rise: float) -> ExitRule:
    """The threshold with the smallest mean depth whose rise of the loss is surely below `max_rise`."""
    values = trace.evidence[kind][MIN_STEPS[kind] - 1 :].flatten().double()
    candidates = torch.quantile(
        values[torch.randperm(len(values))[:100_000]], torch.linspace(0, 1, CANDIDATES).double()
    )
    best, least = ExitRule(kind, NEVER[kind]), float(len(trace.losses))
    for threshold in sorted({max(0.0, value) for value in candidates.tolist()}):
        rule = ExitRule(kind, threshold)
        depths = trace.depths(rule)
        if depths.double().mean() < least and upper_bound(trace.rise(depths), trace.document) <= max_rise:
            best, least = rule, float(depths.double().mean())
    return best


def upper_bound(rises: NDArray[np.float64], document: NDArray[np.int64]) -> float:
    """Mean rise a token, plus standard errors; tokens of one conversation are not independent."""
    _, numbers = np.unique(document, return_inverse=True)
    sums, sizes = np.bincount(numbers, weights=rises), np.bincount(numbers)
    mean = sums.sum() / sizes.sum()
    spread = np.sqrt(((sums - mean * sizes) ** 2).sum()) / sizes.sum()
    return float(mean + SURE * spread)


def decoded(
    model: ActModel, texts: HeldOut, documents: Sequence[int], rule: ExitRule, num_steps: int
) -> tuple[float, float]:
    """Mean loss and depth of the answers' tokens when they are really decoded, one after the other, under the rule."""
    loss, depth, count = 0.0, 0, 0
    for at in range(0, len(documents), ROWS):
        rows = [texts.store.document(index) for index in documents[at : at + ROWS]]
        starts = [int(is_trained.argmax()) for _, is_trained in rows]
        prompts = [ids[:start].tolist() for (ids, _), start in zip(rows, starts, strict=True)]
        answers = [ids[start:].tolist() for (ids, _), start in zip(rows, starts, strict=True)]
        done = [0] * len(rows)
        for tokens in Decoding(model, prompts, DecodeOptions(depth=num_steps, exit=rule), forced=answers):
            for token in tokens:
                is_trained, place = rows[token.row][1], starts[token.row] + done[token.row]
                done[token.row] += 1
                if is_trained[place]:
                    loss, depth, count = loss - token.logprob, depth + token.depth, count + 1
    return loss / count, depth / count


def calibrate(
    model: ActModel,
    texts: HeldOut,
    sets: Collection[Sequence[int]],
    *,
    max_rise: float,
    conversations: int,
    num_steps: int,
) -> dict[str, dict[str, float]]:
    """A threshold for every kind of exit, fitted on every second conversation of each set and checked on the others.

    The rise that is reported, and held below `max_rise` on the conversations it was fitted on, is that of real
    decoding: there a deeper step reads what tokens that left early had last, which evaluation of whole texts does not.
    """
    cast_for_reading(model)
    most = 2 * max(1, conversations // max(1, len(sets)))
    fit, check = ([place for places in sets for place in places[first:most:2]] for first in (0, 1))
    if not check:
        raise ValueError(f"{len(texts.store)} held-out conversations are too few to fit on some and check on others.")
    seen, unseen = (traced(model, texts, documents, num_steps) for documents in (fit, check))
    full_seen, full_unseen = (decoded(model, texts, documents, ExitRule(), num_steps)[0] for documents in (fit, check))
    fixed = [
        float(unseen.rise(torch.full_like(unseen.losses[0], depth, dtype=torch.long)).mean())
        for depth in range(1, len(unseen.losses) + 1)
    ]
    report: dict[str, dict[str, float]] = {}
    for kind in get_args(ExitKind):
        rule = ExitRule(kind, NEVER[kind])
        for share in STRICTER:
            tried = fitted(seen, kind, max_rise * share)
            if decoded(model, texts, fit, tried, num_steps)[0] - full_seen <= max_rise:
                rule = tried
                break
        loss, depth = decoded(model, texts, check, rule, num_steps)
        assert rule.threshold is not None
        report[kind] = {
            "threshold": rule.threshold,
            "mean_depth": depth,
            "loss_increase": loss - full_unseen,
            "loss_increase_at_fixed_depth": float(np.interp(depth, range(1, len(fixed) + 1), fixed)),
        }
    return report


def calibrate_checkpoint(options: CalibrateOptions) -> None:
    """Fit thresholds on the checkpoint's held-out conversations, print them, and store them with it."""
    loaded = load_model(options.opening)
    if not loaded.path.is_dir():
        raise ValueError(f"{loaded.path} is a file; expected a step folder, in which thresholds are stored.")
    config = loaded.config
    if not isinstance(config, InstructConfig):
        raise ValueError(f"{loaded.path} was trained on chat: expected a checkpoint of instruction training.")
    num_steps = config.eval.halt_max_steps or loaded.model.config.halt_max_steps
    if num_steps == 1:
        raise ValueError(
            f"{loaded.path} takes 1 supervision step, which leaves nothing to skip; expected more. A looped model may "
            "take more than trained: --overrides eval.halt_max_steps=4."
        )
    check_split(load_checkpoint(loaded.path), config, allow_other=options.allow_other_split)
    if config.dataset.test_size == "auto":  # that bounds evaluations while training
        config.dataset.test_size = 2 * options.conversations
    corpus = load_text(config, progress=True, first_only=True)
    print(f"calibrating on held-out conversations, at most {num_steps} supervision steps deep", file=sys.stderr)
    found = calibrate(
        loaded.model,
        HeldOut(corpus.test, loaded.tokenizer.pad_id),
        corpus.test_sets.values(),
        max_rise=options.max_loss_increase,
        conversations=options.conversations,
        num_steps=num_steps,
    )
    report = {"max_loss_increase": options.max_loss_increase, "steps": num_steps, "best": best_kind(found)} | found
    file = write_thresholds(loaded.path, report)
    print(json.dumps(report, indent=2))
    print(f"written to {file}", file=sys.stderr)
