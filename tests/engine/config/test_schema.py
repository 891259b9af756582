"""What a run may be told: every problem at once, each with the nearest known key or what to do."""

import pytest
from pydantic import ValidationError

from engine.config.check import check
from engine.config.parse import ConfigError, nearest, parse
from engine.config.schema import ArchChoice, PretrainConfig
from engine.config.text import InstructConfig, TextDataConfig
from src.distillation.config import DistillConfig
from src.distillation.corpus.options import PreprocessOptions
from tests.tiny import ARCH, RUN, TRM


def config(**changes):
    return {**RUN, "arch": {"name": TRM, **ARCH}, "data_paths": ["data/a"]} | changes


def problems(**changes) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        check(PretrainConfig, config(**changes))
    return refused.value.problems


def test_a_good_config_keeps_what_it_was_told():
    checked = check(PretrainConfig, config(lr="1e-4", seed=3))
    assert (checked.lr, checked.seed, checked.epochs) == (1e-4, 3, 9)
    assert checked.arch.options == ARCH and checked.arch.loss.loss_type == "stablemax_cross_entropy"
    assert checked.arch.name == TRM


@pytest.mark.parametrize("seed", ["99999999999999999999999", 2**63, -1])
def test_a_seed_beyond_what_generators_take_is_refused(seed):
    (problem,) = problems(seed=seed)
    assert problem.startswith("seed: ") and str(seed) in problem


def test_a_batch_that_no_machine_holds_is_refused():
    assert problems(global_batch_size=10**23)[0].startswith("global_batch_size: ")


def test_all_problems_are_reported_in_one_error():
    arch = {"name": TRM, **ARCH, "hiden_size": 64, "causal": True, "mlp_t": True, "halt_max_steps": 0}
    arch["loss"] = {"name": "losses@ACTLossHead", "loss_type": "hinge"}
    with pytest.raises(ConfigError) as refused:
        check(PretrainConfig, config(lrr=1, lr=-1.0, epochs="many", arch=arch))
    text = str(refused.value)
    assert text.startswith(f"{len(refused.value.problems)} problems in the config:\n  - ")
    for expected in (
        "lrr: unknown key, did you mean lr?",
        "lr: input should be greater than 0, found -1.0",
        "epochs: input should be a valid integer",
        "found 'many'",
        "arch.loss.loss_type: input should be 'stablemax_cross_entropy' or 'softmax_cross_entropy', found 'hinge'",
        "arch.hiden_size: unknown key, did you mean hidden_size?",
        "arch.halt_max_steps: input should be greater than or equal to 1, found 0",
    ):
        assert expected in text, text


def test_problems_of_run_and_arch_that_need_several_keys_come_together():
    found = problems(
        gradient_accumulation_steps=3,
        eval_only=True,
        resume=True,
        dry_run=True,
        arch={"name": TRM, **ARCH, "causal": True, "mlp_t": True, "puzzle_emb_len": 4},
    )
    assert "dry_run" in found.pop(0)
    assert found == [
        "global_batch_size=8 cannot be split into gradient_accumulation_steps=3 equal parts",
        "eval_only=true needs load_checkpoint=<folder or file>",
        "eval_only=true and resume=true exclude each other: choose one",
        "causal=true and mlp_t=true exclude each other: an MLP sees every position. Choose one",
        "puzzle_emb_len=4 needs puzzle_emb_ndim > 0. Set puzzle_emb_len=0",
    ]


def test_keys_that_do_not_fit_are_told_once_every_key_is_right_by_itself():
    wrong = {"gradient_accumulation_steps": 3, "eval_only": True}
    assert {sentence.partition(":")[0] for sentence in problems(lrr=1, lr=-1, **wrong)} == {"lrr", "lr"}
    assert {sentence.split("=")[0] for sentence in problems(**wrong)} == {"global_batch_size", "eval_only"}


def test_keys_inside_other_options_are_told_their_own_neighbours():
    arch = {"name": TRM, **ARCH, "loss": {"los_type": "x"}, "depth_curriculum": [{"until": 0.5, "H_cycle": 1}]}
    assert problems(arch=arch) == [
        "arch.loss.los_type: unknown key, did you mean loss_type?",
        "arch.depth_curriculum.0.H_cycle: unknown key, did you mean H_cycles?",
    ]
    with pytest.raises(ConfigError, match=r"dataset\.subset_sise: unknown key, did you mean subset_size\?"):
        check(InstructConfig, {"dataset": {"subset_sise": 3}})


def test_a_wrong_key_is_not_blamed_twice():
    """What a wrong value was replaced by for the sake of the other checks must not be reported."""
    assert problems(epochs="many") == [
        "epochs: input should be a valid integer, unable to parse string as an integer, found 'many'"
    ]
    arch = {"name": TRM, **ARCH, "hidden_size": -5}
    assert problems(global_batch_size=0, gradient_accumulation_steps=3, arch=arch) == [
        "global_batch_size: input should be greater than or equal to 1, found 0",
        "arch.hidden_size: input should be greater than 0, found -5",
    ]


def test_what_the_data_decides_cannot_be_chosen():
    assert problems(arch={"name": TRM, **ARCH, "vocab_size": 9}) == [
        "arch.vocab_size: comes from the data and cannot be chosen. Leave it out"
    ]


@pytest.mark.parametrize("name", ["losses@ACTLossHead", "layers@Block"])
def test_a_class_that_is_no_architecture_is_refused(name):
    (found,) = problems(arch={"name": name, **ARCH})
    assert name in found and "ActModel" in found


@pytest.mark.parametrize(("epochs", "interval", "iterations"), [(3, 5, 1), (10, 3, 4), (10, None, 1), (10, 5, 2)])
def test_any_interval_between_evaluations_fits_any_number_of_epochs(epochs, interval, iterations):
    assert check(PretrainConfig, config(epochs=epochs, eval_interval=interval)).iterations == iterations


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        (
            {"name": "recursive_reasoning.trn@TinyRecursiveReasoningModel_ACTV1"},
            "did you mean 'recursive_reasoning.trm'",
        ),
        ({"name": "recursive_reasoning.trm@TinyRecursiveModl"}, "did you mean 'TinyRecursiveModel'"),
        ({"name": "os@path"}, "models/ has no module 'os'"),
        ({"name": "trm"}, "expected module@Class"),
        ({"hidden_size": 64}, "arch.name: is required"),
    ],
)
def test_an_unknown_architecture_is_told_what_exists(arch, expected):
    (found,) = problems(arch=arch)
    assert expected in found


def test_an_unknown_loss_head_is_told_what_exists():
    arch = {"name": TRM, **ARCH, "loss": {"name": "losses@ACTLosHead"}}
    (found,) = problems(arch=arch)
    assert "did you mean 'ACTLossHead'" in found


def test_an_unknown_evaluator_is_told_what_exists():
    found = problems(evaluators=[{"name": "arcs@ARC"}, {"options": 1}], lrr=1)
    assert any("evaluators/ has no module 'arcs'" in sentence for sentence in found)
    assert any("evaluators.1.name: is required" in sentence for sentence in found)
    assert any("lrr: unknown key" in sentence for sentence in found)


@pytest.mark.parametrize("key", ["arch", "data_paths", "global_batch_size", "epochs", "lr"])
def test_what_has_no_default_is_asked_for(key):
    data = config()
    del data[key]
    parsed, found = parse(PretrainConfig, data)
    assert parsed is None and found == [f"{key}: is required, but was not given"]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("device", "tpu", "device: input should be 'auto', 'cuda', 'mps' or 'cpu', found 'tpu'"),
        ("compile", "maybe", "compile: input should be 'auto', True or False, found 'maybe'"),
        (
            "optimizer",
            "sgd",
            "optimizer: input should be 'adam_atan2', 'adam_atan2_cuda', 'adamw' or 'muon', found 'sgd'",
        ),
        ("keep_last", 0, "keep_last: input should be greater than or equal to 1, found 0"),
        (
            "tracker",
            ["wandbb"],
            "tracker.0: input should be 'auto', 'wandb', 'tensorboard' or 'trackio', found 'wandbb'",
        ),
        ("ema_rate", 1.5, "ema_rate: input should be less than 1, found 1.5"),
        ("lr_min_ratio", 2, "lr_min_ratio: input should be less than or equal to 1, found 2"),
        ("data_paths", [], "data_paths: list should have at least 1 item"),
        ("run_name", "a/b", "run_name: must be a plain folder name, found 'a/b'"),
        ("project_name", "..", "project_name: must be a plain folder name, found '..'"),
        ("run_name", " ", "run_name: must be a plain folder name, found ' '"),
        ("max_bad_steps", 0, "max_bad_steps: input should be greater than or equal to 1, found 0"),
        ("lr", float("nan"), "lr: input should be"),
        ("lr", float("inf"), "lr: input should be a finite number"),
        ("weight_decay", float("inf"), "weight_decay: input should be a finite number"),
        ("arch", {"name": TRM, **ARCH, "expansion": float("inf")}, "arch.expansion: input should be a finite number"),
    ],
)
def test_a_bad_value_is_refused_with_what_was_found(key, value, expected):
    assert any(sentence.startswith(expected) for sentence in problems(**{key: value}))


@pytest.mark.parametrize("value", [True, False, "auto"])
def test_compile_takes_a_choice_or_leaves_it_to_the_device(value):
    assert check(PretrainConfig, config(compile=value)).compile == value


def test_the_nearest_key_is_named_only_if_there_is_one():
    assert nearest("lrr", ["lr", "epochs"]) == ", did you mean lr?"
    assert nearest("quite_different", ["lr", "epochs"]) == ""


def test_arch_options_are_everything_but_name_and_loss():
    choice = ArchChoice.model_validate({"name": "a@B", "loss": {}, "hidden_size": 3})
    assert choice.options == {"hidden_size": 3}


@pytest.mark.parametrize(("path", "project"), [("data/arc-aug-1000", "Arc-aug-1000-ACT-torch"), ("x/", "X-ACT-torch")])
def test_the_project_is_named_after_the_data(path, project):
    assert check(PretrainConfig, config(data_paths=[path])).default_project_name() == project


@pytest.mark.parametrize("options", [TextDataConfig, PreprocessOptions, DistillConfig])
def test_a_row_that_no_memory_holds_is_refused_by_its_option(options):
    (name,) = {"seq_len", "max_seq_length"} & set(options.model_fields)
    with pytest.raises(ValidationError, match=name):
        options.model_validate({name: 10**23})


def test_options_of_the_corpus_are_checked_together():
    dataset = {"source": "web", "subset_size": 0, "test_ratio": 1.0, "truncate": "left", "seq_len": 1, "sample_size": 0}
    with pytest.raises(ConfigError) as refused:
        check(InstructConfig, {**RUN, "arch": {"name": TRM, **ARCH}, "dataset": dataset})
    for name, value in dataset.items():
        assert any(f"dataset.{name}" in problem and str(value) in problem for problem in refused.value.problems)
