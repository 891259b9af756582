"""What more data and more GPUs take: the formula, and that the page shows what the script prints."""

from pathlib import Path

import pytest

from lab.scaling import GPUS, WEIGHT_BYTES, Cluster, machine_bytes, main, page, store_bytes, time
from tests.tiny import ROOT, flags, pretrain, write_sudoku

CLUSTER = Cluster(weights=23e6, batch=512, tokens_per_second=13_000, cores=16, network=100)


def test_the_page_shows_what_the_script_prints(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    printed = capsys.readouterr().out.strip()
    assert printed == page(CLUSTER)
    assert printed in (ROOT / "docs" / "scaling.md").read_text(), "put the output of `python -m lab.scaling` there"


def test_gradients_cost_the_network_between_machines_and_nothing_on_one_gpu() -> None:
    assert CLUSTER.traffic(1) == CLUSTER.gradient_seconds(1) == 0
    assert CLUSTER.traffic(2) == 23e6 * 4  # half of what a ring passes on for very many
    assert CLUSTER.gradient_seconds(64) == pytest.approx(2 * 63 / 64 * 92e6 / 12.5e9)
    last = CLUSTER.last_gpus()
    assert CLUSTER.pass_seconds(1) / last == pytest.approx(2 * 92e6 / 12.5e9)
    assert CLUSTER.epoch_seconds(1e6, 64) < CLUSTER.epoch_seconds(1e6, 8) / 7


def test_a_machine_holds_the_corpus_once_and_a_plan_for_each_rank() -> None:
    assert store_bytes(1e6) == pytest.approx(2.3 * 400e6, rel=0.1)
    one, eight = (machine_bytes(10e6, ranks) for ranks in (1, 8))
    assert eight - one == 7 * (200e6 + 400e6)
    assert [time(seconds) for seconds in (0.0145, 20.2, 7300, 7e6)] == ["14.5 ms", "20.2 s", "2.03 h", "81 days"]
    assert GPUS[0] == 1


def test_a_checkpoint_takes_as_many_bytes_a_weight_as_reckoned(tmp_path: Path) -> None:
    words = flags(write_sudoku(tmp_path / "data"), tmp_path / "run", {"hidden_size": 128}, max_steps=1, ema=True)
    assert pretrain(words).code == 0
    files = [tmp_path / "run" / "latest" / name for name in ("model.safetensors", "ema.safetensors", "trainer.pt")]
    weights = files[0].stat().st_size / 4
    assert sum(file.stat().st_size for file in files) == pytest.approx(WEIGHT_BYTES * weights, rel=0.05)
