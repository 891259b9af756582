"""Loads an export as its readers do, and compares weights, token ids and logits with those of the model that left."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dataset.files.json_file import read_json
from dataset.text.conversation import Turn
from dataset.tokenization.protocol import Tokenizer
from engine.checkpoints.load import load_checkpoint, load_weights
from engine.export.hub import RecursiveModel
from engine.export.native import OWN_LAYOUT
from models.act import ActModel

TOLERANCE = 1e-3  # of logits; what differs by more computes something else
TEXTS = ("What is 17 plus 4?", "  two  spaces, a tab\t and\n\na line ", "\u00e4\u6f22\U0001f44d", "a")
FIRST_TURNS: tuple[list[Turn], ...] = ([], [Turn("system", "Be brief.")], [Turn("system", "")])


class Template(Protocol):
    """Writes conversations."""

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]: ...


@dataclass(frozen=True)
class Expected:
    """What the model that left computes."""

    model: ActModel
    weights: dict[str, Tensor]
    num_steps: int
    rows: Sequence[Sequence[int]]  # token ids that it reads
    tokenizer: Tokenizer | None
    template: Template | None

    def logits(self, ids: Sequence[int]) -> Tensor:
        """(S, V) after the last supervision step."""
        return _logits(self.model, ids, self.num_steps)


def check_transformers(layout: str) -> None:
    """Refuse an export that could not be compared with what transformers computes."""
    try:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    except ImportError:
        found = "the package transformers is missing"
    else:
        if layout in CONFIG_MAPPING_NAMES:
            return
        found = f"the transformers that is installed has no {layout}"
    raise ValueError(
        f"Exporting as {layout} takes transformers 5.9 or later to compare with, but {found}. Install it: "
        'pip install -e ".[export]", or export with --format trm.'
    )


def verify(expected: Expected, folder: Path, layout: str) -> dict[str, Any]:
    """Raise a ValueError where the export differs; return how far logits are apart."""
    again = load_checkpoint(folder).weights
    unequal = [
        name
        for name, value in expected.weights.items()
        if name not in again or not torch.equal(again[name].to(value.dtype), value)
    ]
    if unequal or again.keys() != expected.weights.keys():
        raise ValueError(f"{folder} does not give back the weights it was made of: {', '.join(unequal[:5])} differ.")
    if layout == OWN_LAYOUT:
        made_of = read_json(folder / "config.json", dict, "Export again.")
        made_of["arch"] |= {"forward_dtype": "float32"}
        found = RecursiveModel(**made_of)
        load_weights(found, again, source=str(folder))

        def theirs(ids: Sequence[int]) -> Tensor:
            return _logits(found.model, ids, expected.num_steps)
    else:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        _check_tokens(expected, folder)
        theirs = _transformers_logits(folder, expected)
    furthest = max(float((expected.logits(ids) - theirs(ids)).abs().max()) for ids in expected.rows)
    if not furthest <= TOLERANCE:
        raise ValueError(
            f"{folder}: logits differ by {furthest:.2g} from those of the checkpoint; expected {TOLERANCE}."
        )
    return {"max_logit_difference": furthest, "compared_tokens": sum(map(len, expected.rows))}


@torch.inference_mode()
def _logits(model: ActModel, ids: Sequence[int], num_steps: int) -> Tensor:
    core, inputs = model.inner, torch.tensor([list(ids)])
    batch = {"inputs": inputs, "puzzle_identifiers": torch.zeros(1, dtype=torch.int32)}
    batch["is_prompt"] = _open_part(inputs).bool()
    *_, (_, answers) = core.unroll(batch, num_steps)
    logits: Tensor = core.lm_head(core.hidden(answers[-1])).float()[0]
    return logits


def _open_part(inputs: Tensor) -> Tensor:
    """Ones over the half that sees itself both ways, in models that were trained so."""
    opened = torch.zeros_like(inputs)
    opened[:, : inputs.shape[1] // 2] = 1
    return opened


def _transformers_logits(folder: Path, expected: Expected) -> Any:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def logits(ids: Sequence[int]) -> Tensor:
        inputs = torch.tensor([list(ids)])
        opened = {"token_type_ids": _open_part(inputs)} if expected.model.config.prefix_mask else {}
        found: Tensor = model(input_ids=inputs, **opened).logits[0]
        return found

    return logits


def _check_tokens(expected: Expected, folder: Path) -> None:
    """Texts and conversations must become the same ids."""
    from transformers import AutoTokenizer

    tokenizer, template = expected.tokenizer, expected.template
    assert tokenizer is not None and template is not None
    theirs = AutoTokenizer.from_pretrained(folder)
    texts = [*TEXTS, *(tokenizer.decode(ids) for ids in expected.rows)]
    for text in texts:
        _same(tokenizer.encode(text), theirs(text, add_special_tokens=False)["input_ids"], text)
    for first, text in product(FIRST_TURNS, texts):
        turns = [*first, Turn("user", text), Turn("assistant", text), Turn("user", TEXTS[0])]
        for count in (len(first) + 1, len(turns)):
            asked = [{"role": turn.role, "content": turn.text} for turn in turns[:count]]
            found: Any = theirs.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)
            _same(template.encode_prompt(turns[:count]), found["input_ids"], text)


def _same(ours: list[int], theirs: list[int], text: str) -> None:
    if ours != theirs:
        at = next(
            (at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        raise ValueError(
            f"The tokenizer for transformers gives other ids for {text[:60]!r}: {theirs[at : at + 5]} instead of "
            f"{ours[at : at + 5]} from token {at} on. Export with --format trm."
        )
