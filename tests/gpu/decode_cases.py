"""Decoding on the pretended device: with and without memory, every exit, every way to choose, and calibration."""

from typing import Any

import torch

from engine.generate.calibrate import calibrate
from engine.generate.decode import Decoding
from engine.generate.options import DecodeOptions, ExitRule, SamplingOptions
from engine.generate.score import score
from models.kv_cache import cast_for_reading
from tests.engine.generate.test_calibrate import copying
from tests.gpu.place import DECODED, Place, case, text_run

PROMPTS = [[3, 4, 5, 6, 7], [8, 9], [21, 12, 23]]
SAMPLED = SamplingOptions(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.3, seed=3)
DECODED_BY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "greedy": ({}, {}),
    "without memory": ({}, {"mode": "recompute"}),
    "RetNet": ({"arch": "retnet_tiny"}, {}),
    "RetNet without memory": ({"arch": "retnet_tiny"}, {"mode": "recompute"}),
    "prefix mask": ({"prefix_mask": True}, {}),
    "prefix mask without memory": ({"prefix_mask": True}, {"mode": "recompute"}),
    "dense twin": ({"arch": "dense_text"}, {}),
    "sampled, all filters": ({}, {"sampling": SAMPLED}),
    "deeper than trained": ({}, {"depth": 5}),
    "exit by divergence": ({}, {"exit": ExitRule("kl", 0.5)}),
    "exit by margin": ({}, {"exit": ExitRule("margin", 0.05)}),
    "exit by halting head": ({}, {"exit": ExitRule("head", 0.5)}),
    "exit of nobody": ({}, {"exit": ExitRule("kl", 0.0)}),
}


def lively(at: Place, **options: Any) -> Any:
    """A model that does not say the same token for ever."""
    model = text_run(at, **options).task.module.eval().model
    drawn = 0.3 * torch.randn(model.inner.lm_head.weight.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.inner.lm_head.weight.copy_(drawn)
    cast_for_reading(model)
    return model


def said(at: Place, model: Any, options: dict[str, Any], **limits: Any) -> Any:
    chosen = DecodeOptions(num_top=3, compile=at.runtime.use_compile, **options)
    decoding = Decoding(model, PROMPTS, chosen, **({"max_new_tokens": [4, 6, 2]} | limits))
    tokens = iter(decoding)
    rows = [next(tokens), next(tokens)]  # the prompts are read first, and what is made once a reply is made
    while True:
        with at.measured():
            more = next(tokens, None)
        if more is None:
            return rows
        at.facts["times"] = at.facts.get("times", 0) + 1
        rows.append(more)


for name, (arch, options) in DECODED_BY.items():

    @case(f"decoding: {name}", DECODED)
    def decodes(at: Place, arch: dict[str, Any] = arch, options: dict[str, Any] = options) -> Any:
        return said(at, lively(at, **arch), options)


@case("decoding: given tokens", DECODED)
def reads(at: Place) -> Any:
    return said(at, lively(at), {}, forced=[[9, 8, 7], [11], [30, 2, 14, 6]])


@case("decoding: whole texts are scored", DECODED)
def scores(at: Place) -> Any:
    texts, told = [[*prompt, 9, 8, 7] for prompt in PROMPTS], []
    for arch in ({}, {"prefix_mask": True}, {"arch": "retnet_tiny"}):
        told.append(score(lively(at, **arch), texts, DecodeOptions(num_top=3), given=[5, 2, 3], rows=2))
    return told


@case("decoding: one reply ends before the others", DECODED)
def stops(at: Place) -> Any:
    first = said(at, lively(at), {})
    return said(at, lively(at), {}, stop_ids=[first[1][0].id])


@case("decoding: calibration", DECODED)
def calibrates(at: Place) -> Any:
    model = lively(at)
    return calibrate(model, copying(24, seed=2), [range(24)], max_rise=0.1, conversations=12, num_steps=3)
