"""What of a run is compiled, and whether its attention then skips what a mask hides."""

from collections.abc import Callable
from typing import Literal

import torch

from engine.runtime.devices import Runtime
from models.attention import attend, build_mask
from models.compiled import CompiledCalls
from models.core import RecursiveCore
from models.losses.chunked import CompiledScore
from models.losses.puzzles import ACTLossHead
from models.losses.text import TextLossHead

Attention = Literal["auto", "sdpa", "flex"]
TRIED = {"rows": 2, "positions": 200}  # not a whole number of blocks
LARGEST_DIFFERENCE = 0.03  # of numbers near 1 in 16 bits


def compile_networks(
    head: ACTLossHead | TextLossHead,
    runtime: Runtime,
    attention: Attention = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Compile the network calls and, on CUDA, the scoring of text; the module itself, and so every saved name, stays.

    Attention goes through FlexAttention where that is wanted, and where a try shows that this machine has it and that it
    computes what plain attention does.
    """
    core = head.model.inner
    core.network = CompiledCalls()
    if runtime.device.type == "cuda" and isinstance(head, TextLossHead):
        head.score_chunk = CompiledScore()
    if not core.has_mask or attention == "sdpa" or (attention == "auto" and runtime.device.type != "cuda"):
        return
    problem = why_not_in_blocks(core, runtime.device)
    core.masks_in_blocks = not runtime.any_rank(bool(problem))
    if core.masks_in_blocks:
        return
    problem = problem or "another rank cannot"
    if attention == "flex":
        raise ValueError(f"attention=flex: {problem}. Set attention=sdpa, which equals it.")
    say(f"note: attention=sdpa, as FlexAttention does not serve here: {problem}")


def why_not_in_blocks(core: RecursiveCore, device: torch.device) -> str:
    """What is wrong with compiled FlexAttention on this device, in the model's sizes; nothing if it is like plain attention."""
    config, (rows, length) = core.config, TRIED.values()
    shape = (3, rows, length, config.num_heads, config.hidden_size // config.num_heads)
    states = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, core.dtype)
    documents = (torch.arange(length, device=device) // 70).expand(rows, -1)
    found = []
    try:
        for in_blocks in (False, True):
            mask = build_mask(causal=True, documents=documents, is_prompt=None, dtype=core.dtype, in_blocks=in_blocks)
            q, k, v = (part.clone().requires_grad_() for part in states)
            call = torch.compile(attend, dynamic=False) if in_blocks else attend
            answer = call(q, k, v, mask)
            gradients = torch.autograd.grad(answer.float().square().mean() * answer.numel(), (q, k, v))
            found.append(torch.stack([answer.detach(), *gradients]).float().cpu())
    # What a compiler of kernels raises on a machine that it does not suit.
    except (RuntimeError, ImportError, AttributeError, TypeError, ValueError, AssertionError, OSError) as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    apart = (found[0] - found[1]).abs() / found[0].abs().clamp_min(1)
    return "" if apart.max() < LARGEST_DIFFERENCE else f"its numbers differ by {apart.max():.3g}"
