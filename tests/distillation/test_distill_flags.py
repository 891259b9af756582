"""Options of a distillation: names, other names, refusals, and who wins."""

import subprocess
import sys

import pytest

from engine.config.schema import ConfigError
from src.distillation.config.flags import read_yaml
from src.distillation.config.run_options import GROUPS
from src.distillation.config.schema import DistillConfig, check_config
from src.distillation.config.train_flags import parser_of_run, read_run
from tests.distillation.run_samples import shipped, train_as_is
from tests.tiny import ROOT


def read(*line: str) -> DistillConfig:
    return read_run(parser_of_run("test"), line)[0]


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
    assert read("--init-from-teacher", "embed,mlp,qkvo").init_from_teacher == ["embed", "mlp", "qkvo"]
    assert read("--student-overrides", "hidden_size=64 depth_curriculum=[]").student_overrides == {
        "hidden_size": 64,
        "depth_curriculum": [],
    }
    assert check_config({"reverse_kl": False, "divergence": "jsd"}).divergence == "jsd"


def test_all_problems_stand_in_one_error_and_unknown_keys_name_the_nearest():
    with pytest.raises(ConfigError) as error:
        check_config(
            {"learning_rat": 1, "use_8bit_optimizer": True, "max_steps": 0, "saddle_escape": {"patiens_steps": 1}},
            {"use_pretokenized_data": False, "min_lr": 1.0},
        )
    told = str(error.value)
    assert "learning_rat: unknown key, did you mean learning_rate?" in told
    assert "saddle_escape.patiens_steps: unknown key, did you mean patience_steps?" in told
    assert "use_8bit_optimizer: optimizer states are float32. Leave it out" in told
    assert "max_steps: " in told and "preprocess_to_parquet.py" in told
    assert len(error.value.problems) >= 5


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lr": 1e-3, "learning_rate": 1e-3}, "lr is another word for learning_rate"),
        ({"reverse_kl": True, "divergence": "jsd"}, "reverse_kl=true contradicts divergence=jsd"),
        ({"min_lr": 1e-2}, "min_lr=0.01 is above learning_rate=0.0003"),
        ({"jsd_beta": 0.3}, "jsd_beta=0.3 is for divergence=jsd"),
        ({"teacher_kind": "sampled", "reverse_kl": True}, "divergence=reverse_kl needs teacher_kind=topk or dense"),
        ({"teacher_kind": "sampled", "tail": "renorm"}, "tail=renorm is for teacher_kind=topk, found sampled"),
        ({"init_from_teacher": ["head"]}, "a student takes over no head. Choose from embed, mlp, norms, qkvo"),
        ({"init_from_teacher": ["mlp"], "student": "trm_text"}, "student=trm_text takes embed only"),
        ({"saddle_escape": {"min_loss_threshold": 100}}, "how the loss moves, not how large it is"),
        ({"student_overrides": "hidden_size"}, "'hidden_size' is no key=value"),
        ({"eval_niah_lengths": [5000]}, "expected lengths from 8 to max_seq_length=4096"),
    ],
)
def test_what_does_not_fit_is_refused(options, told):
    with pytest.raises(ConfigError) as error:
        check_config(options)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (("--max-step", "3"), "unknown flag --max-step, did you mean --max-steps?"),
        (("--muon-ready-check",), "--muon-ready-check: there is nothing to get ready"),
        (("stray",), "'stray' belongs to no flag"),
        (("--config", "nowhere.yaml"), "There is no config file nowhere.yaml"),
        (("--max-steps", "many"), "max_steps: "),
    ],
)
def test_a_wrong_command_line_ends_in_words(line, told):
    ended = train_as_is(*line)
    assert ended.code != 0 and told in ended.err and "Traceback" not in ended.err


@pytest.mark.parametrize("name", ["train_direct.yaml", "train_cached.yaml", "train_network.yaml"])
def test_shipped_configs_are_sound_and_keep_the_documented_values(name):
    config = check_config(read_yaml(shipped(name)))
    assert config.mode == name.removeprefix("train_").removesuffix(".yaml")
    assert config.max_seq_length == 8192 and config.num_workers == 0
    assert config.train_data_path == config.val_data_path == "data/distillation_preprocessed"
    assert config.output_dir == f"runs/{config.mode}_mode"
    assert config.teacher_topk == (128 if config.mode == "network" else 512), "a cache is made by a direct run"


def test_help_needs_none_of_the_heavy_packages_and_names_every_option():
    blocked = ["torch", "transformers", "pyarrow", "peft", "tokenizers"]
    program = f"""
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
for door in ("scripts.train", "evaluation.perplexity"):
    sys.argv = [door, "--help"]
    try:
        runpy.run_module("src.distillation." + door, run_name="__main__")
    except SystemExit as leave:
        assert leave.code == 0
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    names = [name for group in GROUPS for name in group.model_fields]
    assert sorted([*names, "saddle_escape"]) == sorted(DistillConfig.model_fields)
    for name in [*names, "dry_run", "split", "with_teacher", "enable_saddle_interventions"]:
        assert f"--{name.replace('_', '-')}" in ended.stdout
