"""Into how many passes through the model a step of text is split, by the memory of the device."""

from typing import NamedTuple

import torch

from engine.config.text import TextConfig
from engine.runtime.devices import Runtime
from models.core import RecursiveCore
from models.memory import training_bytes

USUAL_TOKENS = 3072
MOST_TOKENS = 24_576  # beyond, a pass takes more memory and no less time
FREE_SHARE = 0.5  # the estimate knows nothing of fragments, of compiled code and of evaluation


class Passes(NamedTuple):
    """How many a step has, and where that comes from where nobody said it."""

    number: int
    reason: str = ""


def passes_of(config: TextConfig, runtime: Runtime, core: RecursiveCore) -> Passes:
    """As many as were asked for, more if a pass of a rank would hold too many positions; they divide its rows."""
    asked, reason = config.rows.tokens_per_pass, ""
    most = asked if isinstance(asked, int) else USUAL_TOKENS
    if asked == "auto":
        reason = f"tokens_per_pass=auto: {most} on {runtime.device.type}"
        if runtime.device.type == "cuda":
            free = free_bytes(runtime.device)
            most, each = fitting_tokens(config, core, free)
            most = int(runtime.all_gather_rows(torch.tensor([most])).min())  # all ranks split alike
            reason = f"tokens_per_pass=auto: {free / 1e9:.1f} GB free, {each / 1e3:.0f} kB a token"
    rows, seq_len = config.global_batch_size // runtime.world_size, core.config.seq_len
    number = config.gradient_accumulation_steps
    while number < rows and (rows % number or rows // number * seq_len > most):
        number += 1
    return Passes(number, reason)


def free_bytes(device: torch.device) -> int:
    """What CUDA has left, and what PyTorch holds of it without a use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def fitting_tokens(config: TextConfig, core: RecursiveCore, free: int) -> tuple[int, int]:
    """How many positions a pass may have, and the bytes of each; gradients, moments and averages come first."""
    num_steps = 1 if core.config.recursion == "carry" else core.depth.max_steps
    needed = training_bytes(core, num_steps, config.loss.chunked)
    trained = sum(p.nbytes for p in core.parameters() if p.requires_grad)
    left = free * FREE_SHARE - needed.fixed - trained * (3 + config.ema)
    return min(MOST_TOKENS, max(1, int(left / needed.each_position))), needed.each_position
