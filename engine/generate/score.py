"""How likely given ids are, read in whole passes.

B rows, L positions, S tokens of a chunk, V vocabulary.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from engine.generate.batch import padded
from engine.generate.options import DecodeOptions
from engine.runtime.devices import to_device
from engine.runtime.transfer import to_host
from models.act import ActModel
from models.calls import plain_call
from models.kv_cache import check_can_decode
from models.layers import weights_cast_once
from models.losses.chunked import rows_of_chunk
from models.retnet.model import RetNet

ROWS = 16  # texts that are read at once


class ScoredToken(NamedTuple):
    """A given token, and what the model says of its place."""

    id: int
    logprob: float
    is_greedy: bool  # whether it is the likeliest
    top: tuple[tuple[int, float], ...]  # the likeliest ids with their probabilities, as many as were asked for


def score(
    model: ActModel,
    texts: Sequence[Sequence[int]],
    options: DecodeOptions,
    *,
    given: Sequence[int] | None = None,
    open_lengths: Sequence[int] | None = None,
    rows: int = ROWS,
) -> list[list[ScoredToken]]:
    """How likely the tokens of every text are, each after those before it: what `Decoding(forced=...)` reports.

    The first `given` ids of a text (default: the one without a predecessor) are not scored; of these, `open_lengths`
    (default: all) see themselves in both directions in models that were trained so. A text takes at most one id more
    than the model's window. All tokens take the same number of supervision steps: an exit rule is refused, for a token
    that leaves early changes what later ones see, which only decoding one after the other computes.
    """
    given = [1] * len(texts) if given is None else given
    open_lengths = given if open_lengths is None else open_lengths
    num_steps = _steps_of(model, options)
    for text, first in zip(texts, given, strict=True):
        if not 1 <= first <= len(text):
            raise ValueError(
                f"given={first} of a text of {len(text)} ids: expected at least 1, and no more than it has."
            )
        check_can_decode(model, len(text) - 1)
    found: list[list[ScoredToken]] = [[] for _ in texts]
    by_length = [number for number, text in enumerate(texts) if len(text) > given[number]]
    by_length.sort(key=lambda number: -len(texts[number]))
    for start in range(0, len(by_length), rows):
        numbers = by_length[start : start + rows]
        scored = _scored(
            model,
            [texts[number] for number in numbers],
            [given[number] for number in numbers],
            [open_lengths[number] for number in numbers],
            num_steps,
            options.num_top,
        )
        for number, tokens in zip(numbers, scored, strict=True):
            found[number] = tokens
    return found


def _steps_of(model: ActModel, options: DecodeOptions) -> int:
    if options.exit.kind != "none" or options.depth == "auto":
        raise ValueError(
            f"depth={options.depth}, exit {options.exit.kind}: given text is scored at one depth. Name a number of "
            "supervision steps, and no exit rule."
        )
    num_steps = options.depth or model.config.halt_max_steps
    if isinstance(model, RetNet) and num_steps != 1:
        raise ValueError(f"depth={num_steps}: a RetNet takes 1 supervision step. Leave depth out.")
    return num_steps


@torch.inference_mode()
def _scored(
    model: ActModel,
    texts: Sequence[Sequence[int]],
    given: Sequence[int],
    open_lengths: Sequence[int],
    num_steps: int,
    num_top: int,
) -> list[list[ScoredToken]]:
    core = model.inner
    core.depth = model.config.depth_at(1.0)
    device = next(core.parameters()).device
    ids = padded(texts)
    order = torch.arange(ids.shape[1])
    batch = {"inputs": to_device(ids[:, :-1], device)}
    if model.config.prefix_mask:
        batch["is_prompt"] = to_device(order[:-1] < torch.tensor(open_lengths)[:, None], device)
    sizes = torch.tensor([len(text) for text in texts])
    is_wanted = ((order >= torch.tensor(given)[:, None]) & (order < sizes[:, None]))[:, 1:]
    wanted = to_device(ids[:, 1:][is_wanted], device)  # (T,) tokens to score, text by text
    with weights_cast_once(core, core.dtype):
        *_, (_, answers) = core.unroll(batch, num_steps, network=plain_call)
        hidden = core.hidden(answers[-1])[to_device(is_wanted, device)]  # (T, D)
        size = rows_of_chunk(model.config.vocab_size)
        parts = [
            _of_chunk(core.lm_head(hidden[place]).float(), wanted[place], num_top)
            for place in (slice(first, first + size) for first in range(0, len(wanted), size))
        ]
    told = to_host(wanted, *(torch.cat(part) for part in zip(*parts, strict=True)))
    tokens = [
        ScoredToken(token, logprob, is_greedy, tuple(zip(top, chances, strict=True)))
        for token, logprob, is_greedy, top, chances in zip(*(part.tolist() for part in told), strict=True)
    ]
    counts = is_wanted.sum(1).tolist()
    return [tokens[end - count : end] for end, count in zip(accumulate(counts), counts, strict=True)]


def _of_chunk(logits: Tensor, wanted: Tensor, num_top: int) -> tuple[Tensor, ...]:
    """From logits (S, V): how likely the wanted tokens (S,) are, which of them are likeliest, and the likeliest ones."""
    logprobs = logits.log_softmax(-1)
    likeliest = logprobs.topk(min(num_top, logits.shape[1]))
    chosen = logprobs.gather(1, wanted[:, None])[:, 0]
    return chosen, logits.argmax(-1) == wanted, likeliest.indices, likeliest.values.exp()
