"""README.md of an exported model: how to load it, and what the card of its run says of it."""

from typing import Any

from engine.card.card import CARD_FILE, COMMANDS, MARK
from engine.checkpoints.find import step_of
from engine.checkpoints.load import Checkpoint
from engine.export.native import OWN_LAYOUT

LOAD_NATIVE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(DIRECTORY_OR_NAME)
model = AutoModelForCausalLM.from_pretrained(DIRECTORY_OR_NAME)
asked = [{"role": "user", "content": "..."}]
ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**ids)[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
```

No remote code is run. The class takes the same depth for every token: DEPTH supervision steps."""
LOAD_OWN = """\
No class of transformers computes this model. With the project that trained it:

```python
from engine.export.hub import RecursiveModel

model = RecursiveModel.from_pretrained(DIRECTORY_OR_NAME)
logits = model(token_ids)  # (rows, positions) -> (rows, positions, vocabulary)
```"""
BOTH_WAYS = """\
The prompt sees itself both ways: give `token_type_ids` of ones over the prompt, zeros behind it."""


def exported_card(stored: Checkpoint, found: dict[str, Any], *, is_text: bool, reads_both_ways: bool) -> str:
    """The text; `found` is what the export returned."""
    is_own = found["layout"] == OWN_LAYOUT
    head = ["---", f"library_name: {'tiny-recursive-models' if is_own else 'transformers'}"]
    head += ["pipeline_tag: text-generation"] * (is_text and not is_own) + ["tags: [recursive-reasoning, trm]", "---"]
    load = LOAD_OWN if is_own else LOAD_NATIVE.replace("DEPTH", str(found["depth"]))
    compared = (
        f"Exported as `{found['layout']}` from {named(stored)}. Weights are those of the checkpoint, bit for bit; logits differ "
        f"by {found['max_logit_difference']:.2g} at most, on {found['compared_tokens']} tokens of {found['compared_on']}."
    )
    parts = ["\n".join(head), f"# {stored.path.parent.name if step_of(stored.path) is not None else stored.path.name}"]
    parts += [compared, "## Load it", load, *([BOTH_WAYS] if reads_both_ways and not is_own else [])]
    return "\n\n".join([*parts, *_of_run(stored)]) + "\n"


def named(stored: Checkpoint) -> str:
    step = stored.meta.get("step")
    return f"`{stored.path.name}`" if step is None else f"the checkpoint of step {step}"


def _of_run(stored: Checkpoint) -> list[str]:
    """What the card of the run says, without what is typed on the machine where the run is."""
    file = stored.path.parent / CARD_FILE
    if not file.is_file():
        return ["## Training", "The run left no card: what it scored is not known."]
    text = file.read_text(encoding="utf-8").partition(COMMANDS)[0].replace(MARK, "")
    lines = text.strip().splitlines()
    body = "\n".join(lines[1:] if lines and lines[0].startswith("# ") else lines).strip()
    return ["## Training", body]
