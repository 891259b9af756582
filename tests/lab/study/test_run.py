import json
import os
import signal
import time
from pathlib import Path

import pytest

from lab.study import run
from lab.study.run import run_study
from lab.study.trials import Study, Trial
from tests.tiny import ROOT, end, start_python


class Squares(Study):
    """Each seed is a run; the last one is known only when the others are done."""

    mark = "squares"
    base = ("base",)
    variants = {"square": ["own"]}

    def trials(self, rows):
        rest = ("chosen",) if len(rows) >= 2 else None
        return [Trial("square", 0, 1.0), Trial("square", 1, 1.0), Trial("square", 2, 1.0, rest)]

    def seed_words(self, seed):
        return [f"seed={seed}"]

    def kept(self, report):
        return report["test"]

    def headline(self, row):
        return f"value {row['metrics']['value']}"

    def section(self, rows, page):
        return " ".join(" ".join(row["words"]) for row in sorted(rows, key=lambda row: row["seed"]))


def trained(words, flops, folder, config_name):
    Path(folder).mkdir()
    return {"words": words, "seconds": 1.0, "metrics": {"test": {"value": flops}}}


def dies_once(words, flops, folder, config_name):
    mark = Path(folder).parents[1] / "died"
    if words[2] == "seed=1" and not mark.exists():
        mark.touch()
        os._exit(9)
    return trained(words, flops, folder, config_name)


def places(tmp_path):
    return {"results": tmp_path / "r.jsonl", "page": tmp_path / "page.md"}


def test_every_run_gets_its_words_and_the_page_its_section(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "train_words", trained)
    (tmp_path / "page.md").write_text("mine\n")
    run_study(Squares(), jobs=2, **places(tmp_path))
    expected = "base own seed=0 base own seed=1 base own chosen seed=2"
    assert (tmp_path / "page.md").read_text() == (
        f"mine\n\n<!-- squares: begin -->\n{expected}\n<!-- squares: end -->\n"
    )
    out, err = capsys.readouterr()
    assert out.strip() == str(tmp_path / "page.md")
    assert "3 of 3 runs" in err and "minutes left" in err and "value 1.0" in err
    assert not (tmp_path / "r_runs").exists()


def test_a_run_whose_process_died_is_repeated_by_the_next_command(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "train_words", dies_once)
    with pytest.raises(ValueError, match="square, seed 1"):
        run_study(Squares(), jobs=1, **places(tmp_path))
    assert [json.loads(line)["seed"] for line in (tmp_path / "r.jsonl").read_text().splitlines()] == [0]
    assert not (tmp_path / "page.md").exists()
    run_study(Squares(), jobs=1, **places(tmp_path))
    assert sorted(json.loads(line)["seed"] for line in (tmp_path / "r.jsonl").read_text().splitlines()) == [0, 1, 2]


def test_an_error_of_a_run_ends_the_study_and_keeps_what_was_done(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "train_words", fails_late)
    with pytest.raises(ValueError, match="a wrong option"):
        run_study(Squares(), jobs=1, **places(tmp_path))
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 1


def fails_late(words, flops, folder, config_name):
    if words[2] == "seed=1":
        raise ValueError("a wrong option")
    return trained(words, flops, folder, config_name)


def test_two_studies_do_not_share_results(tmp_path, monkeypatch):
    from dataset.files.disk import exclusive_lock

    with exclusive_lock(tmp_path / "r_runs"), pytest.raises(ValueError, match="r_runs"):
        run_study(Squares(), jobs=1, **places(tmp_path))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_processes_and_keeps_the_results(tmp_path, number, code):
    """A whole program, in its own group, as a terminal would interrupt it."""
    words = ["--seeds", "1", "--tflop", "1000", "--jobs", "1", "--variants", "dense, 2 layers", "--overrides"]
    words += ["arch.hidden_size=32", "arch.num_heads=2", "dataset.sample_size=200", f"dataset.data_dir={tmp_path}"]
    words += ["global_batch_size=4", "compile=false", "device=cpu", "dataset.seq_len=64"]
    command = ["-m", "lab.study", "conversations", "--results", tmp_path / "r.jsonl", "--page", tmp_path / "page.md"]
    study = start_python([*command, *words], ROOT)
    place = tmp_path / "r_runs" / "0" / "metrics.jsonl"
    for _ in range(600):
        if place.exists() and place.stat().st_size:
            break
        time.sleep(0.1)
    os.killpg(study.pid, number)
    ended = end(study, 30)
    assert ended.code == code, ended.err
    assert not (tmp_path / "page.md").exists()
    size = place.stat().st_size
    time.sleep(0.5)
    assert place.stat().st_size == size  # nobody trains any more
