"""Text on the pretended device: every architecture, unrolled and with persistent state, every mask and loss, resume."""

from typing import Any

import torch

from engine.train.evaluate import evaluate
from engine.train.loop import Run, train_step
from models.attention import build_mask
from tests.engine.text_samples import LENGTH
from tests.gpu.place import (
    PRECISE,
    TINY_GRADIENTS,
    Place,
    case,
    from_loader,
    result_of,
    resumed,
    text_items,
    text_run,
    train,
)
from tests.models.small import ARCHS

CARRY = {"recursion": "carry", "supervise": "step", "grad_cycles": "last_cycle"}
TWO_NETWORKS = ("hrm", "transformers_baseline")
TRAINED: dict[str, dict[str, Any]] = {
    **{name: {"arch": name} for name in ("trm_text", "trm_tiny", "trm_chat", "looped_text", "prefix_text")},
    **{name: {"arch": name} for name in ("dense_text", "retnet_tiny")},
    **{arch: {"name": ARCHS[arch], "H_layers": int(arch in TWO_NETWORKS)} for arch in ARCHS if arch != "trm"},
    "every gradient, detached": {"grad_cycles": "all"},
    "not detached": {"detach_between_steps": False, "grad_cycles": "all"},
    "supervised last": {"detach_between_steps": False, "supervise": "last", "grad_cycles": "half"},
    "supervised each cycle": {"supervise": "cycle", "grad_cycles": "all"},
    "injected at the start": {"injection": "start"},
    "learned positions": {"pos_encodings": "learned", "latent_init": "embedding"},
    "prefix mask": {"prefix_mask": True},
    "tied embeddings": {"tie_embeddings": True},
    "dense loss": {"run": {"loss": {"chunked": False}}},
    "stablemax": {"loss": {"name": "losses@TextLossHead", "loss_type": "stablemax_cross_entropy"}},
    "mean over conversations": {"run": {"loss": {"reduction": "sequence"}}},
    "micro-batches": {"run": {"gradient_accumulation_steps": 2}},
    "depth curriculum": {"depth_curriculum": [{"until": 0.2, "H_cycles": 1}], "grad_cycles": "2->all"},
    "AdamW": {"run": {"optimizer": "adamw"}},
    "persistent, sampled": {**CARRY, "halt_policy": "sampled"},
    "persistent, learned": {**CARRY, "halt_policy": "learned", "halt_exploration_prob": 0.5},
    "persistent, micro-batches": {**CARRY, "run": {"gradient_accumulation_steps": 2}},
}


for name, options in TRAINED.items():

    @case(f"text: {name}", TINY_GRADIENTS if name == "AdamW" else PRECISE)
    def trains(at: Place, options: dict[str, Any] = options) -> Any:
        return train(at, text_run(at, **options), text_items())


@case("text: one conversation a row")
def trains_unpacked(at: Place) -> Any:
    """On the device by plain causal attention, beside a table of documents on the CPU."""
    data = {"source": "sample", "seq_len": LENGTH, "packing": False}
    run = text_run(at, run={"dataset": data})
    assert run.task.module.model.inner.has_single_documents == (at.runtime.device.type == "cuda")
    return train(at, run, text_items(packing=False)[:2])


@case("text: masks in blocks")
def masks_in_blocks(at: Place) -> Any:
    ((_, batch, _),) = from_loader(at, text_items()[:1])
    marks = at.runtime.to_device({name: batch[name] for name in ("documents", "is_prompt")})
    with at.measured():
        mask = build_mask(causal=True, **marks, dtype=torch.float32, in_blocks=True)
    return mask.blocks.to_dense()


@case("text: a last batch that is not full")
def trains_rest(at: Place) -> Any:
    return train(at, text_run(at, run={"gradient_accumulation_steps": 2}), text_items(documents=5, packing=False))


@case("text: a bad step is discarded")
def discards(at: Place) -> Any:
    run = text_run(at)
    weight = run.task.module.model.inner.lm_head.weight
    for number, (item, _) in enumerate(run.task.feed(from_loader(at, text_items()))):
        factor = float("nan") if number == 1 else 1.0
        hook = weight.register_hook(lambda gradient, factor=factor: gradient * factor)
        train_step(run, item)
        hook.remove()
    assert run.state.bad_steps == 1
    return result_of(run)


@case("text: persistent, a bad step is discarded")
def discards_slots(at: Place) -> Any:
    run = text_run(at, **CARRY)
    for number, (item, _) in enumerate(run.task.feed(from_loader(at, text_items()))):
        if number == 1:
            slots = run.task.slots  # type: ignore[attr-defined]
            state = torch.zeros_like(slots.latents.z_H)
            state[0] = float("nan")
            slots.latents = slots.latents._replace(z_H=slots.latents.z_H + state)
            slots.steps = torch.ones_like(slots.steps)
            slots.is_busy, slots.depth = torch.ones_like(slots.is_busy), slots.depth.clamp_min(2)
        train_step(run, item)
    assert run.state.bad_steps == 1 and run.state.freed_rows == 1
    return result_of(run)


def evaluation(at: Place, run: Run) -> Any:
    items = from_loader(at, text_items())
    outputs = {"save_outputs": ["preds"], "output_dir": at.folder}
    found = evaluate(run.task, items, ["train"], at.runtime, **outputs)  # type: ignore[arg-type]
    return found, (at.folder / "_all_preds.0.safetensors").read_bytes()


@case("text: evaluation")
def evaluates(at: Place) -> Any:
    return evaluation(at, text_run(at))


@case("text: evaluation deeper than trained")
def evaluates_deeper(at: Place) -> Any:
    return evaluation(at, text_run(at, run={"eval": {"halt_max_steps": 5}}))


@case("text: evaluation of a RetNet")
def evaluates_retnet(at: Place) -> Any:
    return evaluation(at, text_run(at, "retnet_tiny"))


@case("text: saved and resumed")
def resumes(at: Place) -> Any:
    return resumed(at, text_run, text_items(24), [("test", *text_items(4)[0][1:])])


@case("text: persistent, saved and resumed")
def resumes_slots(at: Place) -> Any:
    test = [("test", *text_items(4)[0][1:])]
    return resumed(at, lambda at: text_run(at, **CARRY), text_items(24), test)
