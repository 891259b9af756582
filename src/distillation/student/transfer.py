"""Starts a student from weights of its teacher.

V vocabulary, D hidden, N heads, H size of one, F width of a feed-forward layer.
"""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.act import ActModel
from models.layers import swiglu_width
from models.retnet.config import RetNetConfig
from models.retnet.model import RetNet, RetNetBlock
from src.distillation.config import PARTS

KNOWN_TYPES = ("llama", "mistral", "qwen2")  # whose blocks are those of Llama, under its names
WIDTH_STEP = 256  # of a student's feed-forward layer
RMS_OF_GATE = 0.6  # of silu(x), where x is normal
SIZE_OF_AVERAGE = 0.25  # of what attention answers, which averages over many positions, in sizes of one value


@torch.no_grad()
def init_from_teacher(student: ActModel, teacher: Any, parts: Sequence[str]) -> list[str]:
    """Copy `parts` of a Llama-like model of Hugging Face into a fresh student; returns lines that say what was copied.

    `embed` table and head, `norms` their weights, `mlp` feed-forward layers, `qkvo` the projections of attention into
    those of retention. Everything is checked before anything is changed.
    """
    if problems := list(_problems(student, teacher, parts)):
        raise ValueError(f"init_from_teacher={','.join(parts)}: " + ". ".join(problems) + ".")
    # A student looks up vectors of unit variance. Where its teacher's are smaller, all that is added to them is scaled
    # by the same factor, which the norm in front of each layer takes out again.
    gain = 1 / _rms(_table(student, teacher))
    copied = []
    if "embed" in parts:
        copied.append(_copy_embed(student, teacher, gain))
    if not isinstance(student, RetNet):
        return copied
    chosen = _chosen(student.config.H_layers, len(teacher.model.layers))
    blocks = [
        (cast(RetNetBlock, block), teacher.model.layers[number])
        for block, number in zip(student.inner.retention_level.layers, chosen, strict=True)
    ]
    origin = f"blocks {', '.join(str(number) for number in chosen)} of {len(teacher.model.layers)}, counted from 0"
    if "norms" in parts:
        _copy_norms(blocks)
        # With a table that is the head too, the last norm makes up for the size of what is looked up.
        is_tied = student.config.tie_embeddings and "embed" in parts
        scale = student.config.embed_scale / gain if is_tied else 1.0
        student.inner.retention_level.norm.weight.copy_(teacher.model.norm.weight * scale)
        copied.append(f"from the teacher: norms of {origin}, and the last")
    if "mlp" in parts:
        for block, source in blocks:
            _copy_mlp(block, source.mlp, gain)
        copied.append(f"from the teacher: feed-forward layers of {origin}")
    if "qkvo" in parts:
        for block, source in blocks:
            _copy_qkvo(block, source, gain)
        copied.append(f"from the teacher: queries, keys, values and outputs of attention in {origin}")
    left = [name for name, p in teacher.named_parameters() if name.endswith("proj.bias")]
    if left and {"mlp", "qkvo"} & set(parts):
        copied.append(f"not from the teacher: {len(left)} biases such as {left[0]}, for which a student has no place")
    return copied


def _copy_embed(student: ActModel, teacher: Any, gain: float) -> str:
    table = _table(student, teacher)
    student.inner.embed_tokens.embedding_weight.copy_(table * gain / student.config.embed_scale)
    if not student.config.tie_embeddings:
        student.inner.lm_head.weight.copy_(teacher.get_output_embeddings().weight[: len(table)])
    return f"from the teacher: embeddings and head of {len(table)} tokens, {table.shape[1]} wide"


def _copy_norms(blocks: list[tuple[RetNetBlock, Any]]) -> None:
    for block, source in blocks:
        for norm, theirs, reader in (
            (block.retention_norm, source.input_layernorm, block.retention.qkvg_proj),
            (block.mlp_norm, source.post_attention_layernorm, block.mlp.gate_up_proj),
        ):
            norm.weight.copy_(theirs.weight)
            reader.weight.div_(_rms(norm.weight))  # weights that stay the student's own get inputs of the same size


def _copy_mlp(block: RetNetBlock, source: Any, gain: float) -> None:
    """Units that the student has beyond the teacher's start without effect."""
    width = len(source.gate_proj.weight)
    gate, up = block.mlp.gate_up_proj.weight.chunk(2)
    gate[:width].copy_(source.gate_proj.weight)
    up[:width].copy_(source.up_proj.weight)
    down = block.mlp.down_proj.weight
    down[:, :width].copy_(source.down_proj.weight * gain)
    down[:, width:].zero_()


def _copy_qkvo(block: RetNetBlock, source: Any, gain: float) -> None:
    """The gate, which attention lacks, stays as it is. Both kinds of heads pair dimension i with i + H/2."""
    retention, attention = block.retention, source.self_attn
    heads = retention.num_heads
    q, k, v = (
        _per_head(projection, heads) for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )  # (N, H, D)
    width = heads * q.shape[1]
    for place, rows in enumerate((q, k, v)):
        retention.qkvg_proj.weight[place * width : (place + 1) * width].copy_(rows.flatten(0, 1))
    # A head's output is normed to size 1 and gated before it is projected, whereas attention's has the size of an
    # average of values: the projection includes that size, and what the gate takes away. An untrained gate turns much
    # of it into noise, so that more than this harms: at four times as much a student was a third further from its
    # teacher after 100 steps.
    sizes = (v.float() * source.input_layernorm.weight).square().sum(-1).mean(-1).sqrt()  # (N,)
    outputs = attention.o_proj.weight.float().unflatten(1, (heads, -1)) * sizes[:, None]  # (D, N, H)
    retention.o_proj.weight.copy_(outputs.flatten(1) * gain * SIZE_OF_AVERAGE / RMS_OF_GATE)


def _per_head(projection: nn.Linear, heads: int) -> Tensor:
    """(N, H, D); a head that several queries share is repeated for each."""
    size = projection.weight.shape[1] // heads
    found = projection.weight.unflatten(0, (-1, size))
    return found.repeat_interleave(heads // len(found), dim=0)


def _table(student: ActModel, teacher: Any) -> Tensor:
    """(V, D), without ids that the student lacks."""
    table: Tensor = teacher.get_input_embeddings().weight[: student.config.vocab_size].float()
    return table


def _rms(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())


def _chosen(wanted: int, there: int) -> list[int]:
    """Blocks of the teacher at even distances, the first and the last among them."""
    return [round(number * (there - 1) / max(1, wanted - 1)) for number in range(wanted)]


def _problems(student: ActModel, teacher: Any, parts: Sequence[str]) -> Iterator[str]:
    """What does not fit, each with its remedy."""
    own, theirs = student.config, teacher.config
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        yield f"found {', '.join(unknown) or 'no parts'}, expected some of {', '.join(PARTS)}"
    if theirs.model_type not in KNOWN_TYPES:
        yield f"the teacher is a {theirs.model_type}, expected {' or '.join(KNOWN_TYPES)}. Leave it out"
        return
    if not isinstance(own, RetNetConfig) and set(parts) != {"embed"}:
        yield f"a student of {type(student).__name__} can take embed only. Leave out the others"
        return
    if theirs.hidden_size != own.hidden_size:
        yield _misfit("hidden_size", theirs.hidden_size, own.hidden_size)
    if "embed" in parts:
        known = len(teacher.get_input_embeddings().weight)
        if known < own.vocab_size:
            yield f"the teacher knows {known} tokens, the student {own.vocab_size}. Use a teacher of the same tokenizer"
        is_tied = teacher.get_output_embeddings().weight is teacher.get_input_embeddings().weight
        if own.tie_embeddings and not is_tied:
            yield _misfit("tie_embeddings", "false", "true")
    if not isinstance(own, RetNetConfig) or set(parts) == {"embed"}:
        return
    if own.H_layers > theirs.num_hidden_layers:
        yield _misfit("H_layers", theirs.num_hidden_layers, own.H_layers) + " or less"
    if "mlp" in parts:
        yield from _mlp_problems(own, theirs)
    if "qkvo" in parts:
        yield from _attention_problems(own, teacher)


def _misfit(option: str, theirs: object, own: object) -> str:
    return f"the teacher has {option}={theirs}, the student {own}. Set student_overrides {option}={theirs}"


def _mlp_problems(own: RetNetConfig, theirs: Any) -> Iterator[str]:
    if theirs.hidden_act not in ("silu", "swish"):
        yield f"mlp: the teacher's feed-forward layers use {theirs.hidden_act}, a student's silu. Leave out mlp"
    width = swiglu_width(own.hidden_size, own.expansion)
    wanted = -(-theirs.intermediate_size // WIDTH_STEP) * WIDTH_STEP
    if width != wanted:
        yield (
            f"mlp: the teacher's feed-forward layers are {theirs.intermediate_size} wide, the student's {width} with "
            f"expansion={own.expansion:g}. Set student_overrides expansion={1.5 * wanted / own.hidden_size:g}"
        )


def _attention_problems(own: RetNetConfig, teacher: Any) -> Iterator[str]:
    theirs = teacher.config
    if own.value_expansion != 1:  # in attention values are as large as keys
        yield _misfit("value_expansion", 1, own.value_expansion)
    head_size = len(teacher.model.layers[0].self_attn.q_proj.weight) // theirs.num_attention_heads
    if theirs.num_attention_heads != own.num_heads:
        yield _misfit("num_heads", theirs.num_attention_heads, own.num_heads)
    elif head_size * own.num_heads != own.hidden_size:
        yield (
            f"qkvo: the teacher's heads have size {head_size}, a student's hidden_size / num_heads = "
            f"{own.hidden_size // own.num_heads}. Leave out qkvo"
        )
    # transformers moved the key within the range of versions that we accept.
    rope = getattr(theirs, "rope_parameters", None) or {}
    theta = rope.get("rope_theta", getattr(theirs, "rope_theta", own.rope_theta))
    if theta != own.rope_theta:
        yield _misfit("rope_theta", f"{theta:g}", f"{own.rope_theta:g}")
