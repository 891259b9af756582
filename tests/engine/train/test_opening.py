"""How a run starts: from which weights, and what it says of its size."""

import torch

from engine.build.puzzles import build_model
from engine.checkpoints.load import load_checkpoint
from engine.config import schema
from engine.runtime.devices import Runtime
from engine.train.opening import describe, parameter_counts
from tests.tiny import ARCH, CPU, TRM, flags, halting_weights, pretrain, steps_on_disk, write_sudoku


def make_head(**options):
    config = schema.ArchChoice.model_validate({"name": TRM} | ARCH | options)
    return build_model(config, metadata(), rows=2, runtime=CPU)


def metadata():
    from dataset.common import PuzzleDatasetMetadata

    numbers = dict.fromkeys(("pad_id", "ignore_label_id", "blank_identifier_id"), 0)
    sizes = {"vocab_size": 6, "seq_len": 4, "num_puzzle_identifiers": 5, "total_groups": 1, "total_puzzles": 1}
    return PuzzleDatasetMetadata(**numbers, **sizes, mean_puzzle_examples=1, sets=["all"])


def test_parameters_are_counted_where_they_are():
    head = make_head(puzzle_emb_ndim=32)
    counts = parameter_counts(head)
    embedding_and_heads = 6 * 32 + 6 * 32 + (2 * 32 + 2)
    assert counts["parameters_embedding_and_heads"] == embedding_and_heads
    assert counts["parameters_puzzle_table"] == 5 * 32
    assert counts["parameters_trunk"] + embedding_and_heads == sum(p.numel() for p in head.parameters())
    assert describe(head, CPU) == (
        "parameters: 28,672 trunk, 450 embedding and heads, 160 puzzle table; device cpu, compile off"
    )
    two = Runtime(CPU.device, rank=0, world_size=2, use_compile=True)
    assert describe(make_head(), two).endswith("; device cpu, 2 ranks, compile on")


def test_training_starts_from_the_averaged_weights_of_a_checkpoint(tmp_path):
    data, first, second = write_sudoku(tmp_path / "data"), tmp_path / "first", tmp_path / "second"
    assert pretrain(flags(data, first, epochs=3, ema=True, ema_rate=0.5)).code == 0
    still = {"lr": 1e-9, "weight_decay": 0.0, "max_steps": 1, "load_checkpoint": str(first)}
    ended = pretrain(flags(data, second, **still))
    assert f"weights from {first / 'step_9'}, averaged ones" in ended.err
    trained, started = load_checkpoint(first), load_checkpoint(second).weights
    for name, averaged in trained.ema.items():
        torch.testing.assert_close(started[name], averaged, rtol=0, atol=1e-7)
        assert not torch.equal(averaged, trained.weights[name])


def test_a_checkpoint_for_other_puzzles_starts_their_table_at_its_mean(tmp_path):
    arch, run_dir = {"puzzle_emb_ndim": 32}, tmp_path / "run"
    assert pretrain(flags(write_sudoku(tmp_path / "data", identifiers=6), run_dir, arch, max_steps=3)).code == 0
    table = load_checkpoint(run_dir).weights["model.inner.puzzle_emb.weights"]
    more = write_sudoku(tmp_path / "more", identifiers=9)
    still = {"max_steps": 1, "puzzle_emb_lr": 0.0, "load_checkpoint": str(run_dir)}
    ended = pretrain(flags(more, tmp_path / "next", arch, **still))
    assert "puzzle_emb.weights has 6 rows in" in ended.err and "9 here" in ended.err
    started = load_checkpoint(tmp_path / "next").weights["model.inner.puzzle_emb.weights"]
    torch.testing.assert_close(started, table.mean(0).expand(9, -1))


def test_a_resumed_run_no_longer_needs_the_weights_it_started_from(tmp_path):
    data, run_dir = write_sudoku(tmp_path / "data"), tmp_path / "run"
    words = flags(data, run_dir, max_steps=4, load_checkpoint=str(halting_weights(tmp_path / "start.pt", data)))
    assert pretrain([word.replace("max_steps=4", "max_steps=2") for word in words]).code == 0
    (tmp_path / "start.pt").unlink()
    ended = pretrain([*words, "resume=true"])
    assert ended.code == 0 and "done: 2 steps" in ended.err and "weights from" not in ended.err


def test_a_resume_takes_the_step_before_a_damaged_one_and_refuses_when_none_is_left(tmp_path):
    data, run_dir = write_sudoku(tmp_path / "data"), tmp_path / "run"
    command = flags(data, run_dir)
    assert pretrain(command).code == 0
    weights, before = load_checkpoint(run_dir / "step_27").weights, steps_on_disk(run_dir)
    (run_dir / "step_27" / "trainer.pt").write_bytes(b"")
    ended = pretrain([*command, "resume=true"])
    assert ended.code == 0 and f"{run_dir / 'step_18'} instead" in ended.err and "step_27" in ended.err
    torch.testing.assert_close(load_checkpoint(run_dir / "step_27").weights, weights, rtol=0, atol=0)

    for step in before:
        (run_dir / f"step_{step}" / "model.safetensors").unlink()
    ended = pretrain([*command, "resume=true"])
    assert ended.code == 1 and "step_9" in ended.err and "run_name" in ended.err
    assert steps_on_disk(run_dir) == before


def test_evaluating_with_other_cycles_than_trained_is_said(tmp_path):
    data, run = write_sudoku(tmp_path / "data"), tmp_path / "run"
    assert pretrain(flags(data, run, max_steps=2)).code == 0
    asked = {"load_checkpoint": str(run), "eval_only": True}
    assert "trained otherwise" not in pretrain(flags(data, tmp_path / "a", **asked)).err
    ended = pretrain(flags(data, tmp_path / "b", {"L_cycles": 2}, **asked))
    assert ended.code == 0 and "arch.L_cycles=2 instead of 1" in ended.err and "H_cycles" not in ended.err
