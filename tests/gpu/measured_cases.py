"""Steps and tokens whose waits and launches the table holds: default depth, small width, nothing logged."""

import math
from typing import Any

from engine.generate.options import ExitRule, SamplingOptions
from tests.gpu.decode_cases import lively, said
from tests.gpu.distill_cases import direct, distilled, items
from tests.gpu.place import Place, case, puzzle_items, puzzle_run, text_items, text_run, train

DEFAULT_DEPTH = {"L_layers": 2, "H_cycles": 3, "L_cycles": 6}
NOT_COMPARED = math.inf  # so deep a recursion enlarges rounding; that numbers agree is what the other cases show
UNLOGGED = {"run": {"log_interval": 1000}}
PASSES = {"run": {"log_interval": 1000, "global_batch_size": 8, "gradient_accumulation_steps": 8}}
FIXED = {"halt_policy": "fixed", "halt_max_steps": 2}
CARRY = {"recursion": "carry"}


@case("measured: text, a shallow optimizer step of 8 passes and 2 supervision steps", NOT_COMPARED)
def text(at: Place) -> Any:
    return train(at, text_run(at, **FIXED, **PASSES), text_items(40, rows=8)[:3], warm=1)


@case("measured: text, an optimizer step of 1 pass and 2 supervision steps", NOT_COMPARED)
def text_at_once(at: Place) -> Any:
    return train(at, text_run(at, **DEFAULT_DEPTH, **FIXED, **UNLOGGED), text_items(20)[:3], warm=1)


@case("measured: persistent text, sampled depth", NOT_COMPARED)
def persistent(at: Place) -> Any:
    return train(at, text_run(at, **DEFAULT_DEPTH, **CARRY, halt_policy="sampled", **UNLOGGED), text_items(8), warm=1)


@case("measured: persistent text, learned halting", NOT_COMPARED)
def persistent_learned(at: Place) -> Any:
    options = {"halt_policy": "learned", "halt_exploration_prob": 0.5} | UNLOGGED
    return train(at, text_run(at, **DEFAULT_DEPTH, **CARRY, **options), text_items(8), warm=1)


@case("measured: puzzles, attention and prefix", NOT_COMPARED)
def puzzles(at: Place) -> Any:
    return train(at, puzzle_run(at, **DEFAULT_DEPTH, prefix=True, **UNLOGGED), puzzle_items(3), warm=1)


@case("measured: puzzles, MLP without prefix", NOT_COMPARED)
def puzzles_mlp(at: Place) -> Any:
    return train(at, puzzle_run(at, **DEFAULT_DEPTH, mlp_t=True, **UNLOGGED), puzzle_items(3), warm=1)


@case("measured: distillation, an optimizer step of 2 passes", NOT_COMPARED)
def distillation(at: Place) -> Any:
    run = distilled(at, direct(at), micro_batches=2, log_interval=1000)
    return train(at, run, items(3), warm=1)


DECODED: dict[str, dict[str, Any]] = {
    "a token": {},
    "a token, sampled": {"sampling": SamplingOptions(temperature=0.8, top_p=0.9, seed=3)},
    "a token, exit by divergence": {"exit": ExitRule("kl", 0.0)},
}
for name, options in DECODED.items():

    @case(f"measured: {name}, of 2 supervision steps", NOT_COMPARED)
    def decoding(at: Place, options: dict[str, Any] = options) -> Any:
        return said(at, lively(at, **DEFAULT_DEPTH, **FIXED), options, max_new_tokens=6)


@case("measured: a token of a RetNet", NOT_COMPARED)
def decoding_retnet(at: Place) -> Any:
    return said(at, lively(at, arch="retnet_tiny"), {}, max_new_tokens=6)
