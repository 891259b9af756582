"""Bytes that a training step of text holds at once, estimated from the shapes of its layers; nothing is computed.

B rows, L positions, D hidden, V vocabulary.
"""

from typing import NamedTuple

from torch import nn

from models.core import RecursiveCore
from models.layers import Block, CastedLinear, Level
from models.losses.chunked import CHUNK_ELEMENTS
from models.retnet.model import Retention, RetentionLevel

FLOAT = 4


class TrainingBytes(NamedTuple):
    """What a pass through the model holds beside weights, moments and gradients."""

    each_position: int
    fixed: int


def training_bytes(core: RecursiveCore, num_steps: int, is_chunked: bool = True) -> TrainingBytes:
    """Of a pass with `num_steps` supervision steps at the core's present depth, every position of which is supervised."""
    config, item = core.config, core.dtype.itemsize
    num_calls = [core.calls_with_grad(step, num_steps) for step in range(num_steps)]
    at_once = max(num_calls) if config.detach_between_steps else sum(num_calls)
    num_losses = 1 if config.detach_between_steps or config.supervise == "last" else num_steps
    num_answers = core.depth.H_cycles if config.supervise == "cycle" else 1
    width, head = config.hidden_size, core.lm_head.weight.numel()

    networks = [part for part in core.children() if isinstance(part, Level | RetentionLevel)]
    kept = max(kept_of_call(network, config.total_len, item) for network in networks)
    backward = max(kept_of_call(layer, config.total_len, FLOAT) for network in networks for layer in network.layers)
    latents = (len(core.Latents._fields) + 3) * width * item
    mask = 0 if config.mlp_t else config.total_len * item
    hidden = 2 * width * item  # what the output head reads, and its gradient
    logits = 0 if is_chunked else config.vocab_size * (item + 2 * FLOAT)
    each = at_once * kept + backward + latents + mask + num_losses * num_answers * (hidden + logits)
    chunk = CHUNK_ELEMENTS * (item + 3 * FLOAT) if is_chunked else 0
    return TrainingBytes(each, chunk + (num_losses * num_answers + 2) * head * FLOAT)


def kept_of_call(network: nn.Module, length: int, item_bytes: int) -> int:
    """What backward needs of each position of one pass: about what goes into and comes out of every product."""
    total = 0
    for layer in network.modules():
        if isinstance(layer, CastedLinear):
            total += sum(layer.weight.shape)
        elif isinstance(layer, Retention):
            told = 3 * layer.widths[-1]  # before and after the norm of the heads, and what gates it
            total += layer.num_heads * min(layer.chunk_size, length) + told
        elif isinstance(layer, Block) and layer.mixes_by_mlp:
            width = layer.mlp.down_proj.weight.shape[0]
            mixing = sum(sum(part.weight.shape) for part in (layer.mlp_t.gate_up_proj, layer.mlp_t.down_proj))
            total += mixing * width // length - mixing
    return total * item_bytes
