"""The optimizer of a network by its name, the weights that decay, and runs that were saved with other groups of them."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from engine.train.muon import Group, Muon, MuonOptions, muon_groups, takes_muon
from engine.train.optimizers import sizes_of
from engine.train.update_rules import AdamATan2

DECAYED_VECTOR = "q_head.bias"
EMBEDDING = "embedding_weight"


def decay_groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, decays_embeddings: bool = True
) -> list[Group]:
    """Parameter groups: weights of two or more dimensions decay, norm gains and biases do not, embeddings as asked.

    The bias of the halting head is the exception: it decays, as in the reference.
    """
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in named:
        decays = parameter.ndim > 1 and (decays_embeddings or not name.endswith(EMBEDDING))
        (decayed if decays or name.endswith(DECAYED_VECTOR) else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def network_optimizer(
    name: str,
    module: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    decays_embeddings: bool = True,
    muon: MuonOptions | None = None,
) -> Optimizer:
    """The optimizer of that name for all of `module` that is trained: `adam_atan2` (plain torch, any device),
    `adam_atan2_cuda` (the compiled package), `adamw`, or `muon` for the matrices of the blocks with AdamW for the rest."""
    trained = trained_parameters(module)
    groups = decay_groups(trained.items(), weight_decay, decays_embeddings)
    optimizer: Optimizer
    if name == "adam_atan2":
        optimizer = AdamATan2(groups, lr=lr, betas=betas)
    elif name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas)
    elif name == "adam_atan2_cuda":
        optimizer = _compiled_adam_atan2(groups, lr, betas)
    elif name in ("muon", "muon_hybrid"):
        muon = muon or MuonOptions()
        matrices = [p for key, p in trained.items() if takes_muon(key, p)]
        rest = [(key, p) for key, p in trained.items() if not takes_muon(key, p)]
        aux_decay = weight_decay if muon.aux_weight_decay is None else muon.aux_weight_decay
        aux = [group | {"lr_scale": muon.aux_lr_scale} for group in decay_groups(rest, aux_decay, decays_embeddings)]
        optimizer = Muon([*muon_groups(module, matrices, weight_decay), *aux], lr, betas, muon.momentum)
    else:
        raise ValueError(f"Unknown optimizer {name!r}; known are: adam_atan2, adam_atan2_cuda, adamw, muon.")
    resume_with_saved_groups(optimizer, module)
    return optimizer


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def resume_with_saved_groups(optimizer: Optimizer, module: nn.Module) -> None:
    """Let a run that was saved with other parameter groups resume with those, so that it ends as it began.

    Such a checkpoint has all parameters of the module in one group, or matrices and vectors apart, or embeddings with the
    other ones.
    """

    def adopt(optimizer: Optimizer, state: dict[str, Any]) -> None:
        sizes = sizes_of(state["param_groups"])
        own = [group["params"] for group in optimizer.param_groups]
        if sizes == sizes_of(optimizer.param_groups):
            return
        named = trained_parameters(module).items()
        with_and_without = [[group["params"] for group in decay_groups(named, 0.0, decays)] for decays in (True, False)]
        saved = [groups for groups in with_and_without if [len(group) for group in groups] == sizes]
        if len(sizes) == 1:
            order = list(module.parameters())
        elif len(own) == 1:
            order = sorted(own[0], key=lambda p: p.ndim == 1)
        else:
            order = [p for group in (saved or [own])[0] for p in group]
        if sum(sizes) == len(order):  # else torch's own error says what does not fit
            defaults, rest = optimizer.defaults, iter(order)
            optimizer.param_groups = [{**defaults, "params": list(islice(rest, size))} for size in sizes]

    optimizer.register_load_state_dict_pre_hook(adopt)


def _compiled_adam_atan2(groups: list[Group], lr: float, betas: tuple[float, float]) -> Optimizer:
    if not all(p.is_cuda for group in groups for p in group["params"]):
        raise ValueError("optimizer=adam_atan2_cuda needs a CUDA device. Use optimizer=adam_atan2, which equals it.")
    try:
        from adam_atan2 import AdamATan2 as CompiledAdamATan2
    except ImportError as error:
        raise ValueError(
            f"optimizer=adam_atan2_cuda needs the package adam-atan2, which cannot be imported ({error}). "
            "Install it with `pip install -e .[cuda]`, or use optimizer=adam_atan2, which equals it."
        ) from error
    compiled: Optimizer = CompiledAdamATan2(groups, lr=lr, betas=betas)
    return compiled
