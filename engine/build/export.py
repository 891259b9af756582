"""Writes a checkpoint as a folder that other programs load, and compares what they compute with what we do."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset.chat.reader import open_chat_data
from dataset.chat.template import ChatEncoder
from dataset.common import text_metadata
from dataset.files.disk import disk_errors
from dataset.text.conversation import Turn
from dataset.text.template import ConversationEncoder
from dataset.text.token_store import Documents
from dataset.tokenization.for_transformers import tokenizer_config, tokenizer_json
from dataset.tokenization.protocol import Tokenizer
from engine.build.corpus import load_text
from engine.build.puzzle_checkpoint import is_of_puzzles, puzzle_metadata
from engine.build.puzzles import build_recursive_model, puzzle_config
from engine.build.text_checkpoint import conversation_template, open_text_checkpoint
from engine.card.card import CARD_FILE
from engine.card.exported import exported_card
from engine.checkpoints.find import CONFIG_FILE, MODEL_FILE, REST_FILE
from engine.checkpoints.load import Checkpoint, load_checkpoint, load_weights
from engine.checkpoints.run_directory import to_yaml
from engine.checkpoints.save import write_meta
from engine.config.schema import RunConfig
from engine.config.text import ChatConfig, InstructConfig
from engine.export.native import OWN_LAYOUT, NativeLayout, native_config, obstacles, to_native
from engine.export.options import ExportOptions
from engine.generate.exits import EXIT_FILE
from engine.generate.options import CHAT_REPLY, ReplyOptions
from models.act import ActModel

# By the module of our class the class of transformers that may compute the same, and how many networks ours has.
NATIVE: dict[str, tuple[NativeLayout, int]] = {
    "trm": ("hrm_text", 1),
    "hrm": ("hrm_text", 2),
    "transformers_baseline": ("llama", 1),
}
NUM_COMPARED = 4  # held-out conversations
OWN_TEXTS = ("What is the capital of France?", "Count from one to ten, and then back again.")
OF_THIS_MACHINE = ("checkpoint_path", "load_checkpoint", "resume", "eval_only", "dry_run", "device")


@dataclass(frozen=True)
class Leaving:
    """A checkpoint with all that an export needs of it."""

    stored: Checkpoint
    config: RunConfig
    model: ActModel  # in float32, with the averaged weights where there are any
    weights: dict[str, Tensor]
    num_steps: int
    tokenizer: Tokenizer | None = None
    template: ChatEncoder | ConversationEncoder | None = None
    stop_ids: frozenset[int] = frozenset()

    @property
    def layout(self) -> tuple[str, int, str]:
        """The class of transformers for it, the number of its networks, and what stands in the way of one."""
        name = self.config.arch.name
        module = name.replace(":", "@").partition("@")[0].rpartition(".")[2]
        if module not in NATIVE:
            return OWN_LAYOUT, 0, f"arch.name={name}"
        layout, networks = NATIVE[module]
        problems = obstacles(self.model.config, layout, self.num_steps)
        return (OWN_LAYOUT, networks, ", ".join(problems)) if problems else (layout, networks, "")


def open_leaving(options: ExportOptions) -> Leaving:
    """The checkpoint and its model in float32."""
    stored = load_checkpoint(options.opening.path, newest=options.opening.newest)
    is_text = not is_of_puzzles(stored)
    tokenizer = template = None
    stop_ids: frozenset[int] = frozenset()
    config: RunConfig
    if is_text:
        text = open_text_checkpoint(replace(options.opening, checkpoint=str(stored.path), newest=False))
        config = text.config
        tokenizer, template, stop_ids = conversation_template(text.config, text.tokenizer_path, stored.path)
        metadata = text_metadata(text.config.row_length, tokenizer.vocab_size, tokenizer.pad_id)
    else:
        config = puzzle_config(stored)
        metadata = puzzle_metadata(stored, config.data_paths)
    weights = stored.weights | (stored.ema or {})
    arch = config.arch.model_validate(config.arch.model_dump() | {"forward_dtype": "float32"})
    model = build_recursive_model(arch, metadata, config.global_batch_size).eval()
    load_weights(torch.nn.ModuleDict({"model": model}), weights, source=str(stored.path))
    num_steps = options.depth or model.config.halt_max_steps
    if model.config.reads_once and num_steps != 1:
        raise ValueError(f"--depth {num_steps}: {arch.name} takes 1 supervision step. Leave --depth out.")
    return Leaving(stored, config, model, weights, num_steps, tokenizer, template, stop_ids)


def export(options: ExportOptions) -> dict[str, Any]:
    """Write the folder, and return what was compared."""
    from engine.export.hub import push
    from engine.export.verify import Expected, check_transformers, verify

    leaving = open_leaving(options)
    layout, networks, obstacle = leaving.layout
    if options.format == "trm":
        layout = OWN_LAYOUT
    elif obstacle and options.format == "hf":
        raise ValueError(
            f"No class of transformers computes what {leaving.stored.path} does: {obstacle}. Train with arch=trm_hf, or "
            "export with --format trm."
        )
    elif obstacle:
        print(f"note: no class of transformers for {obstacle}; writing our own form", file=sys.stderr)
    if layout != OWN_LAYOUT:
        check_transformers(layout)
    target = Path(options.output).expanduser()
    rows, source = compared_rows(leaving)
    expected = Expected(leaving.model, leaving.weights, leaving.num_steps, rows, leaving.tokenizer, leaving.template)
    with staged(target) as folder:
        write_export(leaving, folder, layout, networks)
        found = verify(expected, folder, layout) | {"compared_on": source}
        found = {"output": str(target), "layout": layout, "depth": leaving.num_steps, **found}
        card = exported_card(
            leaving.stored,
            found,
            is_text=leaving.tokenizer is not None,
            reads_both_ways=leaving.model.config.prefix_mask,
        )
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
    if options.push is not None:
        found["pushed"] = push(target, options.push, private=options.private)
    return found


def compared_rows(leaving: Leaving) -> tuple[list[list[int]], str]:
    """Token ids to compare logits on, and where they come from: held-out conversations where they are on this machine."""
    config, template = leaving.config, leaving.template
    if template is None:
        arch = leaving.model.config
        return [[at % arch.vocab_size for at in range(arch.seq_len)]], "made-up inputs"
    documents: Documents | None = None
    try:
        if isinstance(config, ChatConfig):
            documents, _ = open_chat_data(config.data_paths, "test", config.row_length)
        elif isinstance(config, InstructConfig) and "corpus" in leaving.stored.meta:  # a distilled model has another
            # What is not here is not fetched for this.
            few = {"subset_size": 1, "test_size": NUM_COMPARED} | (
                {} if config.dataset.is_built_in else {"source": "local"}
            )
            data = config.dataset.model_copy(update=few)
            documents = load_text(config.model_copy(update={"dataset": data}), progress=False, first_only=True).test
    except (ValueError, OSError) as problem:
        print(f"note: comparing on a text of ours, not on held-out ones: {problem}", file=sys.stderr)
    if documents is not None and len(documents):
        return [documents.document(at)[0].tolist() for at in range(min(NUM_COMPARED, len(documents)))], "held-out text"
    return [template.encode_prompt([Turn("user", text)]) for text in OWN_TEXTS], "a text of ours"


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder beside the target that takes its place when the block ends, and vanishes if it fails."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} holds other things. Name a directory that does not exist yet, or remove it.")
    folder = target.absolute().with_name(f".{target.absolute().name}.tmp-{os.getpid()}")
    try:
        with disk_errors(folder):
            folder.mkdir(parents=True)
            yield folder
            folder.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_export(leaving: Leaving, folder: Path, layout: str, networks: int) -> None:
    """All files of an export."""
    from safetensors.torch import save_file

    arch, stored, steps = leaving.model.config, leaving.stored, leaving.num_steps
    options = arch.model_dump(mode="json") | {
        "forward_dtype": leaving.config.arch.options.get("forward_dtype", "bfloat16")
    }
    options["halt_max_steps"] = steps
    name = leaving.config.arch.name
    if layout == OWN_LAYOUT:
        content: dict[str, Any] = {"name": name, "arch": options}
        weights, files = {key: value.clone().contiguous() for key, value in leaving.weights.items()}, [MODEL_FILE]
    else:
        weights, rest = to_native(leaving.weights, arch, layout)  # type: ignore[arg-type]  # one of the classes
        content, files = native_config(arch, layout, steps), [MODEL_FILE, REST_FILE]  # type: ignore[arg-type]
        save_file(rest, folder / REST_FILE)
    save_file(weights, folder / MODEL_FILE, metadata={"format": "pt"})
    if leaving.tokenizer is not None:
        files += _write_tokenizer(leaving, folder, required=layout != OWN_LAYOUT)
        content |= _token_ids(leaving) if layout != OWN_LAYOUT else {}
        _write_json(folder / "generation_config.json", _token_ids(leaving) | _usual_sampling(leaving))
    _write_json(folder / "config.json", content)
    calibrated = stored.path / EXIT_FILE
    if calibrated.is_file() and steps == leaving.config.arch.options.get("halt_max_steps", steps):
        shutil.copyfile(calibrated, folder / EXIT_FILE)
    config = leaving.config.model_dump(mode="json", exclude=set(OF_THIS_MACHINE))
    config["arch"] |= {"halt_max_steps": steps}
    for file in folder.glob("*.safetensors"):  # which safetensors lets nobody else read
        file.chmod((folder / "config.json").stat().st_mode)
    (folder / CONFIG_FILE).write_text(to_yaml(config), encoding="utf-8")
    facts = {key: value for key, value in stored.meta.items() if key != "files"}
    facts["export"] = {"layout": layout, "networks": networks, "name": name, "arch": options}
    write_meta(folder, facts, [folder / name for name in (*files, CONFIG_FILE)])


def _write_tokenizer(leaving: Leaving, folder: Path, *, required: bool) -> list[str]:
    """The tokenizer for transformers with the template, and our own file, whose name is returned."""
    assert leaving.tokenizer is not None and leaving.template is not None
    (own, *_) = leaving.tokenizer.files()
    try:
        content = tokenizer_json(leaving.tokenizer)
    except ValueError as problem:
        if required:
            raise
        print(f"note: no tokenizer.json: {problem}", file=sys.stderr)
        shutil.copyfile(own, folder / own.name)
        return [own.name]
    window = leaving.model.config.seq_len
    _write_json(folder / "tokenizer_config.json", tokenizer_config(leaving.tokenizer, content, window))
    (folder / "chat_template.jinja").write_text(leaving.template.jinja(), encoding="utf-8")
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    name = (
        own.name
        if own.read_bytes() == content.encode() or own.suffix != ".json"
        else f"trm_{own.name.removeprefix('trm_')}"
    )
    if name != "tokenizer.json":
        shutil.copyfile(own, folder / name)
    return [name]


def _token_ids(leaving: Leaving) -> dict[str, Any]:
    assert leaving.tokenizer is not None
    first, *others = [leaving.tokenizer.eos_id, *sorted(leaving.stop_ids - {leaving.tokenizer.eos_id})]
    return {
        "bos_token_id": leaving.tokenizer.bos_id,
        "eos_token_id": [first, *others] if others else first,
        "pad_token_id": leaving.tokenizer.pad_id,
    }


def _usual_sampling(leaving: Leaving) -> dict[str, Any]:
    """How generate.py and generate_instruct.py answer if nothing is asked of them; the window ends an answer."""
    temperature = (CHAT_REPLY if isinstance(leaving.config, ChatConfig) else ReplyOptions()).decode.sampling.temperature
    how = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    return how | {"max_length": leaving.model.config.seq_len + 1}


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
