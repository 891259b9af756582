"""Our models as `huggingface_hub` knows models: from_pretrained, save_pretrained, push_to_hub."""

from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from engine.config.registry import load_model_class
from models.act import ActModel


class RecursiveModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="tiny-recursive-models",
    tags=["recursive-reasoning", "trm"],
):
    """Any model of ours by the identifier of its class and its options; token ids in, logits out."""

    def __init__(self, name: str, arch: dict[str, Any]) -> None:
        super().__init__()
        model_class: type[ActModel] = load_model_class(name)
        self.model = model_class(arch)

    def forward(self, inputs: Tensor, num_steps: int | None = None, puzzle_identifiers: Tensor | None = None) -> Tensor:
        """Logits (B, S, V) of ids (B, S) after so many supervision steps; default: as many as trained."""
        core = self.model.inner
        batch = {"inputs": inputs}
        if self.model.config.puzzle_emb_ndim:
            none = torch.zeros(len(inputs), dtype=torch.int32, device=inputs.device)
            batch["puzzle_identifiers"] = none if puzzle_identifiers is None else puzzle_identifiers
        if self.model.config.prefix_mask:
            batch["is_prompt"] = torch.ones_like(inputs, dtype=torch.bool)
        *_, (_, answers) = core.unroll(batch, num_steps or self.model.config.halt_max_steps)
        logits: Tensor = core.lm_head(core.hidden(answers[-1])).float()
        return logits
