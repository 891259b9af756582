"""Floating point operations of a training step, counted from the shapes of its matrix products; nothing is computed.

B rows, L positions, D hidden. A product with gradient costs its forward pass three times: backward makes two more.
"""

from torch import nn

from models.core import RecursiveCore
from models.layers import Attention, Block, BoardConv, CastedLinear
from models.retnet.model import Retention


def training_flops(core: RecursiveCore, rows: int, num_tokens: int, num_steps: int = 1) -> int:
    """Operations of `num_steps` supervision steps on whole rows at the core's present depth.

    `num_tokens` of their positions go through the output head.
    """
    are_alike, total = core.config.supervise != "last", 0
    for step in range(1 if are_alike else num_steps):
        passes, head_passes = core.passes_of_step(step, num_steps)
        length = core.config.total_len
        total += sum(times * pass_flops(network, rows, length) for network, times in passes.items())
        total += head_passes * 2 * num_tokens * core.lm_head.weight.numel()
    return num_steps * total if are_alike else total


def pass_flops(network: nn.Module, rows: int, length: int) -> int:
    """Operations of one forward pass of a network over B x L positions."""
    total, over_channels = 0, 2 * rows * length
    for layer in network.modules():
        if isinstance(layer, CastedLinear):
            total += over_channels * layer.weight.numel()
        elif isinstance(layer, Attention):  # queries times keys, and weights times values, of all positions
            total += 2 * over_channels * length * layer.num_heads * layer.head_dim
        elif isinstance(layer, BoardConv):
            total += 2 * rows * layer.side**2 * layer.kernel.numel()
        elif isinstance(layer, Retention):
            total += over_channels * layer.products_of_position(length)
        elif isinstance(layer, Block) and layer.mixes_by_mlp:  # its layers run over the positions of each channel
            width = layer.mlp.down_proj.weight.shape[0]
            mixing = sum(part.weight.numel() for part in (layer.mlp_t.gate_up_proj, layer.mlp_t.down_proj))
            total += 2 * rows * (width - length) * mixing
    return total
