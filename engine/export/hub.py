"""Our models as `huggingface_hub` knows models: from_pretrained, save_pretrained, push_to_hub; and exports pushed whole."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, ModelCard, PyTorchModelHubMixin
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dataset.files.download import endpoint
from dataset.files.json_file import read_json
from engine.checkpoints.find import META_FILE, MODEL_FILE
from engine.checkpoints.hub import fetched
from engine.checkpoints.load import load_checkpoint, load_weights
from engine.config.registry import load_model_class
from models.act import ActModel

LIBRARY, TAGS = "tiny-recursive-models", ["recursive-reasoning", "trm"]
CARD = """\
---
library_name: {library}
tags: [{tags}]
---
A model of the class `{name}`. `RecursiveModel.from_pretrained` of `engine.export.hub` loads it.
"""


class RecursiveModel(nn.Module, PyTorchModelHubMixin, library_name=LIBRARY, tags=TAGS):
    """Any model of ours by the identifier of its class and its options; token ids in, logits out."""

    def __init__(self, name: str, arch: dict[str, Any]) -> None:
        super().__init__()
        self.name = name
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

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        return ModelCard(
            CARD.format(library=LIBRARY, tags=", ".join(TAGS), name=self.name), ignore_metadata_errors=True
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = {name: value.detach().cpu().clone().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, save_directory / MODEL_FILE, metadata={"format": "pt"})

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", **options: Any) -> "RecursiveModel":
        """From an export in any form, or what `save_pretrained` wrote: a folder, or a name of the Hub."""
        folder = Path(model_id)
        if not folder.is_dir():
            folder = fetched(model_id, revision=options.get("revision"), token=options.get("token"))
        if (folder / META_FILE).is_file():
            stored = load_checkpoint(folder)
            weights, made_of = stored.weights, stored.meta.get("export", {})
        else:
            weights, made_of = load_file(folder / MODEL_FILE), {}
            made_of = read_json(folder / "config.json", dict, "Save the model again.")
        if not {"name", "arch"} <= made_of.keys():
            raise ValueError(f"{folder} is not an export: it does not say of what class it is. See docs/export.md.")
        found = cls(options.get("name", made_of["name"]), options.get("arch", made_of["arch"]))
        load_weights(found, weights, source=str(folder))
        return found.to(map_location).eval()


def push(folder: Path, repo: str, *, private: bool) -> str:
    """Put an export on the Hub, as one commit of a repository that is made if it does not exist; returns its address."""
    api = HfApi(endpoint=endpoint())
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message="A model exported by scripts/export.py")
    except (HfHubHTTPError, OSError) as error:
        raise ValueError(
            f"{folder} is written, but the Hub did not take it as {repo}: {' '.join(str(error).split())[:300]}. Set HF_TOKEN "
            f"to one that may write, then: hf upload {repo} {folder}"
        ) from error
    return f"{endpoint()}/{repo}"
