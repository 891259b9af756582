"""Weights in the names of a class of transformers that computes the same, and back, bit for bit.

`hrm_text` is the recursion of TRM and HRM whose input enters once; `llama` is one pass of a plain transformer.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from models.config import ArchConfig
from models.kernels import EPS
from models.layers import swiglu_width

Weights = dict[str, Tensor]
OWN_LAYOUT = "trm"  # the names of ours, for what no class computes
NativeLayout = Literal["hrm_text", "llama"]
CLASSES: dict[NativeLayout, str] = {"hrm_text": "HrmTextForCausalLM", "llama": "LlamaForCausalLM"}

PREFIX = "model.inner."
HRM_STACKS = {"L_module": "L_level", "H_module": "H_level"}
# A gate of zeros lets half through, which twice the projection behind it undoes exactly.
HALF_OPEN = 2.0


def obstacles(config: ArchConfig, layout: NativeLayout, num_steps: int) -> list[str]:
    """The options, as `arch.name=value`, that keep a model from being what the class computes."""
    wanted: dict[str, Any] = {
        "norm": "pre",
        "feed_forward": "swiglu",
        "causal": True,
        "mlp_t": False,
        "pos_encodings": "rope",
        "puzzle_emb_ndim": 0,
    }
    if layout == "hrm_text":
        wanted |= {"injection": "start", "latent_init": "embedding"}
    else:
        wanted |= {"prefix_mask": False}
    found = [f"arch.{name}={getattr(config, name)}" for name, value in wanted.items() if getattr(config, name) != value]
    if config.hidden_size % config.num_heads:
        found.append(f"arch.num_heads={config.num_heads}")
    if layout == "hrm_text" and config.H_layers not in (0, config.L_layers):
        found.append(f"arch.H_layers={config.H_layers}")
    if layout == "llama" and num_steps != 1:
        found.append(f"arch.halt_max_steps={num_steps}")
    return [text.replace("True", "true").replace("False", "false") for text in found]


def native_config(config: ArchConfig, layout: NativeLayout, num_steps: int) -> dict[str, Any]:
    """The content of config.json; ids of special tokens are for the caller to add."""
    shared: dict[str, Any] = {
        "architectures": [CLASSES[layout]],
        "model_type": layout,
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": swiglu_width(config.hidden_size, config.expansion),
        "num_attention_heads": config.num_heads,
        "head_dim": config.hidden_size // config.num_heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.seq_len,
        "rms_norm_eps": EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "use_cache": True,
    }
    if layout == "llama":
        return shared | {
            "num_hidden_layers": config.H_layers,
            "num_key_value_heads": config.num_heads,
            "tie_word_embeddings": False,
        }
    cycles = num_steps * config.H_cycles
    return shared | {
        "num_hidden_layers": config.L_layers * cycles * (config.L_cycles + 1),  # one place in a cache for each call
        "num_layers_per_stack": config.L_layers,
        "H_cycles": cycles,
        "L_cycles": config.L_cycles,
        "L_bp_cycles": [config.L_cycles],
        "embedding_scale": math.sqrt(config.hidden_size),
        "prefix_lm": config.prefix_mask,
        "tie_word_embeddings": config.tie_embeddings,
    }


def to_native(weights: Weights, config: ArchConfig, layout: NativeLayout) -> tuple[Weights, Weights]:
    """The weights in names of the class, and those of ours that it has no place for, in our names."""
    inner = {name.removeprefix(PREFIX): value for name, value in weights.items()}
    table, rest = inner["embed_tokens.embedding_weight"], ["q_head.weight", "q_head.bias", "H_init"]
    theirs: Weights = {}
    if layout == "hrm_text":
        theirs |= {"model.embed_tokens.weight": table, "model.z_L_init": inner["L_init"]}
        rest.append("L_init")  # which is stored in the dtype of the model's activations
        is_tied = config.tie_embeddings
        for stack, level in HRM_STACKS.items():
            own = level if config.H_layers else "L_level"
            for name, value in _blocks_to_native(inner, own, config.L_layers):
                theirs[f"model.{stack}.{name}"] = value * HALF_OPEN if "o_proj" in name else value
            width, gate = theirs[f"model.{stack}.layers.0.self_attn.q_proj.weight"].shape, "self_attn.gate_proj.weight"
            theirs |= {f"model.{stack}.layers.{at}.{gate}": torch.zeros(width) for at in range(config.L_layers)}
    else:
        is_tied = False
        theirs["model.embed_tokens.weight"] = _entering(table, inner["H_init"], config)
        if not config.tie_embeddings:
            rest.append("embed_tokens.embedding_weight")  # rounding keeps it from being computed back
        ones = torch.ones(config.hidden_size)
        theirs |= {f"model.{name}": value for name, value in _blocks_to_native(inner, "H_level", config.H_layers)}
        for at in range(config.H_layers):
            theirs |= {f"model.layers.{at}.{norm}_layernorm.weight": ones for norm in ("input", "post_attention")}
        theirs["model.norm.weight"] = ones
    if not is_tied:
        theirs["lm_head.weight"] = inner["lm_head.weight"]
    # safetensors writes no tensor that shares memory with another.
    theirs = {name: value.float().clone().contiguous() for name, value in theirs.items()}
    return theirs, {PREFIX + name: inner[name].clone() for name in rest if name in inner}


def from_native(theirs: Weights, rest: Weights, layout: str, num_networks: int) -> Weights:
    """What `to_native` was given, of a model with so many networks."""
    if layout not in CLASSES:
        raise ValueError(f"Weights of the form {layout!r} are not known; known are {', '.join(CLASSES)}.")
    ours: Weights = {}
    stacks = {"model.": "H_level"}
    if layout == "hrm_text":
        stacks = {
            f"model.{stack}.": level for stack, level in HRM_STACKS.items() if num_networks == 2 or level == "L_level"
        }
        ours["embed_tokens.embedding_weight"] = theirs["model.embed_tokens.weight"]
    for stack, level in stacks.items():
        own = {name.removeprefix(stack): value for name, value in theirs.items() if name.startswith(stack + "layers.")}
        ours |= _blocks_from_native(own, level, halved=layout == "hrm_text")
    ours["lm_head.weight"] = theirs.get("lm_head.weight", theirs["model.embed_tokens.weight"])
    ours.setdefault("embed_tokens.embedding_weight", ours["lm_head.weight"])
    return {PREFIX + name: value for name, value in ours.items()} | rest


def _blocks_to_native(inner: Weights, level: str, count: int) -> Iterator[tuple[str, Tensor]]:
    for at in range(count):
        block = f"{level}.layers.{at}."
        q, k, v = inner[block + "self_attn.qkv_proj.weight"].chunk(3)
        gate, up = inner[block + "mlp.gate_up_proj.weight"].chunk(2)
        parts = {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v, "mlp.gate_proj": gate}
        parts |= {name: inner[f"{block}{name}.weight"] for name in ("self_attn.o_proj", "mlp.down_proj")}
        yield from ((f"layers.{at}.{name}.weight", value) for name, value in (parts | {"mlp.up_proj": up}).items())


def _blocks_from_native(blocks: Weights, level: str, *, halved: bool) -> Weights:
    ours: Weights = {}
    for name in [name for name in blocks if name.endswith("self_attn.q_proj.weight")]:
        block = name.removesuffix("self_attn.q_proj.weight")
        of = {part: blocks[f"{block}{part}.weight"] for part in ("self_attn.o_proj", "mlp.down_proj")}
        if halved:
            of["self_attn.o_proj"] = of["self_attn.o_proj"] / HALF_OPEN
        of["self_attn.qkv_proj"] = torch.cat([blocks[f"{block}self_attn.{part}_proj.weight"] for part in "qkv"])
        of["mlp.gate_up_proj"] = torch.cat([blocks[f"{block}mlp.{part}_proj.weight"] for part in ("gate", "up")])
        ours |= {f"{level}.{block}{part}.weight": value for part, value in of.items()}
    return ours


def _entering(table: Tensor, start: Tensor, config: ArchConfig) -> Tensor:
    """What the first block reads for each token: its embedding, and the start of the answer where there is one."""
    x = config.embed_scale * table.float()
    z = x if config.latent_init == "embedding" else start.float()
    if config.injection == "call" or config.latent_init == "learned":
        return z + x
    return z
