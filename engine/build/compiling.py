"""What of a run is compiled, and whether its attention then skips what a mask hides."""

from collections.abc import Callable
from typing import Literal

import torch

from engine.runtime.devices import Runtime
from models.calls import plain_call
from models.compiled import CompiledCalls
from models.core import RecursiveCore
from models.layers import Attention as SelfAttention
from models.losses.chunked import CompiledScore
from models.losses.puzzles import ACTLossHead
from models.losses.text import TextLossHead

Attention = Literal["auto", "sdpa", "flex"]
LEAST_CAPABILITY = (8, 0)  # of a GPU that is tried: a fault of a kernel on an older one would end the run
ROWS_TRIED = 2
LARGEST_DIFFERENCE = 0.03  # of their size, in 16 bits


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


def check_attention(attention: Attention, runtime: Runtime) -> None:
    """Refuse what only compiled code has in a run that does not compile."""
    if attention == "flex" and not runtime.use_compile:
        raise ValueError("attention=flex is of compiled code. Set compile=true, or attention=auto.")


def why_not_in_blocks(core: RecursiveCore, device: torch.device) -> str:
    """What is wrong with compiled FlexAttention on this device, of this model and its masks; nothing if nothing is."""
    if device.type == "cuda" and (has := torch.cuda.get_device_capability(device)) < LEAST_CAPABILITY:
        return "compute capability {}.{} of this GPU is below {}.{}".format(*has, *LEAST_CAPABILITY)
    config, kept = core.config, core.masks_in_blocks
    attention = next(module for module in core.modules() if isinstance(module, SelfAttention))
    marks = (3 * torch.arange(config.seq_len, device=device) // config.seq_len).expand(ROWS_TRIED, -1)
    batch = {"inputs": marks, "documents": marks, "is_prompt": marks == 1}
    shape = (ROWS_TRIED, config.total_len, config.hidden_size)
    states = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, core.dtype)
    found = []
    try:
        for core.masks_in_blocks in (False, True):
            call = torch.compile(plain_call, dynamic=False) if core.masks_in_blocks else plain_call
            state = states.clone().requires_grad_()
            answer = call(attention, state, core.context(batch))
            (gradient,) = torch.autograd.grad(answer.float().square().sum(), state)
            found.append(torch.stack([answer.detach(), gradient]).float().flatten(1).cpu())
    # What a compiler of kernels raises on a machine that it does not suit.
    except (RuntimeError, ImportError, AttributeError, TypeError, ValueError, AssertionError, OSError) as error:
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    finally:
        core.masks_in_blocks = kept
    apart = ((found[0] - found[1]).norm(dim=1) / found[0].norm(dim=1)).max()
    return "" if apart < LARGEST_DIFFERENCE else f"its numbers differ by {apart:.2g} of their size"
