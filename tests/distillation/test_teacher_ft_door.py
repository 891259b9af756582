"""The program that tunes a teacher: flags above file, one line of result, and what is wrong is told in words."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from scripts.finetune_teacher import main
from src.distillation.teachers.causal_lm import load_causal_lm
from src.distillation.tuning.job import open_corpus
from tests.distillation.teacher_samples import finetune, options, write_corpus, write_llama


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a corpus that no test changes."""
    root = tmp_path_factory.mktemp("tuning")
    write_llama(root / "teacher")
    write_corpus(root, count=60)
    return root


def write_yaml(root: Path, file: Path, **changes: Any) -> Path:
    given = options(root, **changes).model_dump(exclude_unset=True)
    file.write_text(yaml.safe_dump(given))
    return file


def test_flags_win_over_the_file_and_the_result_is_one_line(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_yaml(shared, tmp_path / "ft.yaml", max_steps=50)
    main(
        [
            "--config",
            str(file),
            "--max-steps",
            "2",
            "--output-dir",
            str(tmp_path / "out"),
            "--lr",
            "1e-3",
            "--save-merged",
        ]
    )
    out = capsys.readouterr().out
    result = json.loads(out)
    assert out.count("\n") == 1
    assert result["steps"] == 2
    written = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert (written["learning_rate"], written["max_steps"]) == (1e-3, 2)


def test_ram_disk_is_read_and_removed(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import src.distillation.tuning.job as teacher_ft

    if not Path("/dev/shm").is_dir():
        pytest.skip("this system has no /dev/shm")
    monkeypatch.setattr("src.distillation.run.ram_disk.RESERVE_BYTES", 0)
    read = []
    monkeypatch.setattr(
        teacher_ft, "open_corpus", lambda c, folder, *rest: read.append(folder) or open_corpus(c, folder, *rest)
    )
    file = write_yaml(shared, tmp_path / "ft.yaml", max_steps=1, output_dir=str(tmp_path / "out"))
    main(["--config", str(file), "--ram-disk", "--ram-disk-cleanup"])
    assert read[0].is_relative_to("/dev/shm")
    assert not read[0].exists()
    assert "ram disk: removed" in capsys.readouterr().err


def leaves_with(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(list(argv))
    assert left.value.code not in (0, None)
    return str(left.value.code) + capsys.readouterr().err


def test_unknown_option_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ft.yaml").write_text("lora_rnk: 4\nlearning_rate: -1\n")
    message = leaves_with(capsys, "--config", str(tmp_path / "ft.yaml"))
    assert "lora_rnk" in message and "lora_rank" in message
    assert "learning_rate" in message  # all problems at once


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"init_config": "x.json", "teacher_model": None}, "method: full"),
        ({"init_config": "x.json", "method": "full"}, "teacher_model"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"min_lr": 1.0}, "min_lr=1"),
        ({"ram_disk_cleanup": True}, "ram_disk"),
        ({"method": "full", "save_merged": False}, "save_merged"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        options(tmp_path, **changes)


def test_layer_that_is_not_there_is_refused(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="c_attn"):
        finetune(options(shared, output_dir=str(tmp_path), target_modules=["q_proj", "c_attn"]))


def test_model_with_fewer_tokens_than_the_corpus_is_refused(shared: Path, tmp_path: Path) -> None:
    write_llama(tmp_path / "small", vocab_size=200, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config = options(shared, teacher_model=str(tmp_path / "small"), output_dir=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="200 ids"):
        finetune(config)


def test_missing_model_says_what_to_give(shared: Path, tmp_path: Path) -> None:
    config = options(shared, teacher_model=str(tmp_path / "nowhere"), output_dir=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="nowhere .*HF_TOKEN"):
        finetune(config)


@pytest.mark.parametrize("package", ["transformers", "peft"])
def test_missing_package_names_the_extra(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=package):
        finetune(options(shared, output_dir=str(tmp_path)))


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"hidden_size": 8}', '{"model_type": "llamma"}', '{"model_type": "vit"}']
)
def test_file_that_describes_no_model_is_refused(shared: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "odd.json").write_text(content)
    made = {"teacher_model": None, "init_config": str(tmp_path / "odd.json"), "method": "full"}
    with pytest.raises(ValueError, match=r"odd\.json"):
        finetune(options(shared, **made, output_dir=str(tmp_path / "out")))


def test_adapter_beside_merged_weights_is_refused(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "teacher", tmp_path, dirs_exist_ok=True)
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "somewhere"}')
    with pytest.raises(ValueError, match="adapter_model.safetensors"):
        load_causal_lm(str(tmp_path), dtype=torch.float32)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="teacher_adapter_path"):
        load_causal_lm(str(tmp_path), dtype=torch.float32)
