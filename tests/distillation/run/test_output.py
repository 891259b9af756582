"""Where runs of one output_dir go, and what programs say about which of them they mean."""

from pathlib import Path

import pytest

from tests.distillation.run_samples import done, fails, perplexity, perplexity_as_is, train, words, write_world
from tests.tiny import steps_on_disk


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def test_a_short_run_after_a_trained_one_does_not_take_its_place(world: Path) -> None:
    done(train(world, "kept", "--pretrain-ce-only", max_steps=5))
    ended = train(world, "kept", "--pretrain-ce-only", max_steps=1)
    beside = world / "kept-2"
    assert done(ended)["output_dir"] == str(beside) and str(world / "kept") in ended.err
    assert (steps_on_disk(world / "kept"), steps_on_disk(beside)) == ([5], [1])
    assert f"output_dir: {beside}\n" in (beside / "config.yaml").read_text()

    ended = perplexity(world, "kept")
    report = done(ended)
    assert (report["run_dir"], report["step"], report["steps_planned"]) == (str(world / "kept"), 5, 5)
    assert str(beside) in ended.err


def test_a_run_is_resumed_where_it_lies(world: Path) -> None:
    for _ in range(2):
        done(train(world, "more", "--pretrain-ce-only", max_steps=1))
    second = world / "more-2"
    ended = train(
        world, "more", "--pretrain-ce-only", "--resume-from", str(second / "checkpoint_latest.pt"), max_steps=2
    )
    assert done(ended)["output_dir"] == str(second) and 2 in steps_on_disk(second)
    assert steps_on_disk(world / "more") == [1]
    done(train(world, "more", "--pretrain-ce-only", "--resume-from", "latest", max_steps=3))
    assert 3 in steps_on_disk(world / "more")


def test_a_checkpoint_brings_the_options_of_its_run(world: Path) -> None:
    done(train(world, "alone", "--pretrain-ce-only", max_steps=2))
    expected = done(perplexity(world, "alone"))
    own = done(perplexity_as_is("--checkpoint", str(world / "alone" / "latest")))
    assert own | {"checkpoint": expected["checkpoint"]} == expected
    told = fails(perplexity_as_is("--checkpoint", str(world / "alone"), *words({"max_seq_length": 128})))
    assert "max_seq_length" in told  # what is given counts
    taught = done(perplexity_as_is("--checkpoint", str(world / "alone"), "--with-teacher", "--rows", "1"))
    assert taught["kl"] > 0  # the run itself had no teacher
