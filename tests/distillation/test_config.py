"""Options of a distillation: names, other names, refusals, and who wins."""

import json
import subprocess
import sys
from typing import Any

import pytest

from engine.config.flags import FlagParser, merged, read_yaml
from engine.config.parse import ConfigError
from src.distillation.config import DistillConfig
from src.distillation.tuning.config import TeacherFtConfig
from tests.distillation.run_samples import shipped, train_as_is
from tests.tiny import ROOT

PATHS = ["scripts/finetune_teacher.py", "scripts/cache_teacher_logits.py", "data/preprocess_to_parquet.py"]


def read(*line: str) -> DistillConfig:
    return FlagParser(DistillConfig, "test").read(line)[0]


def check(*sources: dict[str, Any]) -> DistillConfig:
    return merged(DistillConfig, *sources)


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lr: 5e-3\nweight_decay: 0.3\nsaddle_escape: {patience_steps: 7}\n")
    config = read("--config", str(file), "--weight-decay", "0.01", "--enable-saddle-interventions")
    assert (config.learning_rate, config.weight_decay, config.max_grad_norm) == (5e-3, 0.01, 1.0)
    assert config.saddle_escape.interventions_enabled and config.saddle_escape.patience_steps == 7
    assert read("--learning-rate", "1e-3") == read("--lr", "1e-3") != read()


def test_other_spellings_mean_the_same():
    assert read("--reverse-kl").divergence == "reverse_kl"
    assert read("--optimizer-type", "muon").optimizer_type == "muon_hybrid"
    assert read("--resume", "latest").resume_from == read("--resume-from", "latest").resume_from == "latest"
    assert read("--resume-from", "auto").resume_from == "latest"
    assert read("--init-from-teacher", "embed,mlp,qkvo").init_from_teacher == ["embed", "mlp", "qkvo"]
    assert read("--student-overrides", "hidden_size=64 depth_curriculum=[]").student_overrides == {
        "hidden_size": 64,
        "depth_curriculum": [],
    }
    assert check({"reverse_kl": False, "divergence": "jsd"}).divergence == "jsd"


def test_all_problems_stand_in_one_error_and_unknown_keys_name_the_nearest():
    with pytest.raises(ConfigError) as error:
        check(
            {"learning_rat": 1, "max_steps": 0, "saddle_escape": {"patiens_steps": 1}},
            {"use_pretokenized_data": False, "min_lr": 1.0},
        )
    told = str(error.value)
    assert "learning_rat: " in told and "learning_rate?" in told
    assert "saddle_escape.patiens_steps: " in told and "patience_steps?" in told
    assert "max_steps: " in told and "preprocess_to_parquet.py" in told
    assert len(error.value.problems) >= 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lr": 1e-3, "learning_rate": 2e-3}, "learning_rate=0.002"),
        ({"reverse_kl": True, "divergence": "jsd"}, "divergence=jsd"),
        ({"min_lr": 1e-2}, "min_lr=0.01"),
        ({"jsd_beta": 0.3}, "jsd_beta=0.3"),
        ({"teacher_kind": "sampled", "reverse_kl": True}, "divergence=reverse_kl"),
        ({"teacher_kind": "sampled", "tail": "renorm"}, "tail=renorm"),
        ({"init_from_teacher": ["head"]}, "embed, mlp, norms, qkvo"),
        ({"init_from_teacher": ["mlp"], "student": "trm_text"}, "student=trm_text"),
        ({"saddle_escape": {"min_loss_threshold": 100}}, "saddle_escape.min_loss_threshold"),
        ({"student_overrides": "hidden_size"}, "'hidden_size'"),
        ({"eval_niah_lengths": [5000]}, "max_seq_length=4096"),
    ],
)
def test_what_does_not_fit_is_refused(options, told):
    with pytest.raises(ConfigError) as error:
        check(options)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (("--max-step", "3"), "--max-steps"),
        (("--use-8bit-optimizer",), "--use-8bit-optimizer"),
        (("stray",), "'stray'"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
        (("--max-steps", "many"), "max_steps: "),
    ],
)
def test_a_wrong_command_line_ends_in_words(line, told):
    ended = train_as_is(*line)
    assert ended.code != 0 and told in ended.err and "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("options", "token"),
    [
        ({"teacher_mode": "network", "teacher_temperature": 2.0}, "tail=renorm"),
        ({"teacher_mode": "network", "teacher_kind": "dense"}, "found dense"),
        ({"teacher_mode": "network", "teacher_adapter_path": "a"}, "teacher_adapter_path"),
        ({"teacher_model": None}, "teacher_model"),
        ({"teacher_mode": "cached", "cache_logits": True}, "cache_logits=true"),
        ({"cache_logits": True, "cache_dir": ""}, "cache_dir"),
        ({"on_missing": "direct"}, "on_missing=direct"),
        ({"teacher_mode": "cached", "on_missing": "direct", "teacher_model": None}, "on_missing=direct"),
        ({"teacher_mode": "remote", "teacher_kind": "most", "teacher_topk": 0}, "teacher_topk"),
        ({"teacher_temperature": 0.0}, "teacher_temperature"),
    ],
)
def test_a_teacher_that_cannot_be_asked_is_refused(options: dict[str, Any], token: str) -> None:
    with pytest.raises(ConfigError) as error:
        check(options)
    assert token in str(error.value)


def test_without_a_teacher_nothing_is_asked_of_it() -> None:
    assert check({"pretrain_ce_only": True, "teacher_model": None}).mode == "ce"


@pytest.mark.parametrize("name", ["train_direct.yaml", "train_cached.yaml", "train_network.yaml"])
def test_shipped_configs_are_sound_and_keep_the_documented_values(name):
    config = check(read_yaml(shipped(name)))
    assert config.mode == name.removeprefix("train_").removesuffix(".yaml")
    assert config.max_seq_length == 8192 and config.num_workers == 0
    assert config.train_data_path == config.val_data_path == "data/distillation_preprocessed"
    assert config.output_dir == f"runs/{config.mode}_mode"
    assert config.teacher_topk == (128 if config.mode == "network" else 512), "a cache is made by a direct run"


RECORDED = json.loads((ROOT / "tests" / "fixtures" / "distillation_configs.json").read_text())


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_shipped_configs_resolve_to_the_recorded_values(name: str) -> None:
    """The files hold only what differs from the defaults, so a changed default would change what a run does."""
    config_class = DistillConfig if name.startswith("train_") else TeacherFtConfig
    assert merged(config_class, read_yaml(shipped(name))).model_dump(mode="json") == RECORDED[name]


def test_every_shipped_config_is_recorded() -> None:
    assert sorted(RECORDED) == sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))


def test_help_needs_none_of_the_heavy_packages_and_names_every_option():
    blocked = ["torch", "transformers", "pyarrow", "peft", "tokenizers"]
    program = f"""
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
for program in ("scripts.train", "evaluation.perplexity", "evaluation.needle"):
    sys.argv = [program, "--help"]
    try:
        runpy.run_module("src.distillation." + program, run_name="__main__")
    except SystemExit as leave:
        assert leave.code == 0
for path in {PATHS}:
    sys.argv = [path, "--help"]
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as leave:
        assert leave.code == 0
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    names = [name for name in (*DistillConfig.model_fields, *TeacherFtConfig.model_fields) if name != "saddle_escape"]
    for name in [*names, "dry_run", "split", "with_teacher", "enable_saddle_interventions", "reverse_kl"]:
        assert f"--{name.replace('_', '-')}" in ended.stdout
