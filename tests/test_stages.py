"""Several corpora in a row: SlimOrca, then OpenOrca, in one run with one schedule, stopped and resumed in either."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.config.check import check
from engine.config.compose import composed
from engine.config.parse import ConfigError
from engine.config.text import InstructConfig
from tests.ranks import run_two_ranks
from tests.test_pretrain_instruct import MODES, assert_same_course, assert_same_end, logged, stopped_at
from tests.text_runs import infer_text, text_flags, train_text, write_corpus

NEW = [f"What is {i} - {i}?" for i in range(40)]  # questions of OpenOrca that SlimOrca has not


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 records of SlimOrca, 18 of them held out; all of them and 40 more as OpenOrca has them."""
    folder = write_corpus(tmp_path_factory.mktemp("data"))
    old = [json.loads(line)["conversations"] for line in (folder / "SlimOrca.jsonl").read_text().splitlines()]
    pairs = [(found[0]["value"], f"It is {found[1]['value']}") for found in old] + [(text, "It is 0.") for text in NEW]
    rows = [{"id": str(i), "system_prompt": "", "question": q, "response": a} for i, (q, a) in enumerate(pairs)]
    (folder / "orca").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "orca" / "1M-GPT4-Augmented.parquet")
    return folder


def stages(data: Path, *last: str) -> list[str]:
    first = f"{{repo: Open-Orca/SlimOrca, data_dir: {data}}}"
    more = "".join(f", {words}" for words in last)
    return [f"dataset.stages=[{first}, {{repo: {data / 'orca'}{more}}}]", "dataset.subset_size=null"]


def words(data: Path, run: Path, arch: dict[str, Any], **options: Any) -> list[str]:
    flags = text_flags(data, run, arch, **options)
    return [flag for flag in flags if not flag.startswith("dataset.data_dir=")]


@pytest.mark.parametrize("mode", ["unrolled", "carry"])
def test_a_run_stopped_in_both_stages_ends_as_if_it_had_not_been(mode: str, data: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = {"epochs": 1, "ema": True, "gradient_accumulation_steps": 2}
    two = stages(data, "epochs: 2")
    ended = train_text([*words(data, whole, MODES[mode], **options), *two])
    assert ended.code == 0, ended.err
    told = re.findall(r"stage (\d) of 2: (\d+) conversations", ended.err)
    assert told == [("1", "42"), ("2", "82")] and "18 that the first stage holds out" in ended.err
    assert json.loads(ended.out)["test"]["count"] == 18

    command = [*words(data, broken, MODES[mode], **options), *two]
    last = logged(whole)[-1]["step"]
    stops = (3, last - 5)
    for number, step in enumerate(stops):
        stopped_at(step, [*command, *(["resume=true"] if number else [])])
    ended = train_text([*command, "resume=true"])
    assert ended.code == 0 and f"resumed from {broken / f'step_{stops[1] - 1}'}" in ended.err
    assert "stage 2 of 2" in ended.err and "stage 1 of 2" not in ended.err
    assert logged(broken) == logged(whole)
    assert_same_end(whole, broken)


def test_two_ranks_make_the_run_of_one_process(data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    options = {"epochs": 1, "lr": 1e-3, "eval_interval": 1}
    assert train_text([*words(data, one, MODES["unrolled"], **options), *stages(data)]).code == 0
    ended = run_two_ranks(
        "pretrain_instruct.py", [*words(data, two, MODES["unrolled"], **options), *stages(data)], tmp_path
    )
    assert re.findall(r"stage (\d) of 2: (\d+) conversations", ended.err) == [("1", "42"), ("2", "82")]
    assert_same_course(two, one)
    assert_same_end(two, one, atol=2e-4)


def test_one_schedule_spans_all_stages_and_the_first_is_what_it_is_alone(data: Path, tmp_path: Path) -> None:
    options = {"epochs": 1, "lr_min_ratio": 0.1}
    both, alone = tmp_path / "both", tmp_path / "alone"
    assert train_text([*words(data, both, MODES["unrolled"], **options), *stages(data)]).code == 0
    rates = [line["train/lr"] for line in logged(both) if "train/lr" in line]
    assert rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] == pytest.approx(1e-3, rel=0.05)
    constant = {"lr_min_ratio": 1.0, "arch.halt_policy": "fixed"}
    runs = [(both, stages(data)), (alone, [f"dataset.data_dir={data}"])]
    for run, more in runs:
        assert train_text([*words(data, tmp_path / f"{run.name}1", {}, **options | constant), *more]).code == 0
    trained = [
        [line["train/token_loss"] for line in logged(tmp_path / f"{run.name}1") if "train/token_loss" in line]
        for run, _ in runs
    ]
    assert len(trained[1]) < len(trained[0]) and trained[0][: len(trained[1])] == trained[1]


def test_a_stage_is_added_to_a_finished_run(data: Path, tmp_path: Path) -> None:
    whole, longer = tmp_path / "whole", tmp_path / "longer"
    options = {"epochs": 1, "lr_min_ratio": 1.0, "arch.halt_policy": "fixed", "eval_interval": 1}
    assert train_text([*words(data, whole, {}, **options), *stages(data)]).code == 0
    command = words(data, longer, {}, **options)
    assert train_text([*command, f"dataset.data_dir={data}"]).code == 0
    assert train_text([*command, *stages(data), "resume=true"]).code == 0
    trained = [[line for line in logged(run) if "train/token_loss" in line] for run in (whole, longer)]
    assert trained[0] == trained[1]
    assert_same_end(whole, longer)


def test_a_checkpoint_of_stages_is_evaluated_on_what_the_first_holds_out(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = train_text([*words(data, run, MODES["unrolled"], epochs=1), *stages(data, "sample: 0.5")])
    assert ended.code == 0, ended.err
    again = infer_text("--checkpoint", run)
    assert again.code == 0 and "42 train, 18 test" in again.err, again.err

    shutil.copytree(data, tmp_path / "moved")
    for step in run.glob("step_*/config.yaml"):
        step.write_text(step.read_text().replace(f"data_dir: {data}", f"data_dir: {tmp_path / 'away'}"))
    assert infer_text("--checkpoint", run).code == 1
    moved = infer_text("--checkpoint", run, "--data-dir", tmp_path / "moved")
    assert moved.code == 0 and moved.out == again.out, moved.err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["dataset.repo=Open-Orca/OpenOrca"], "repo=Open-Orca/OpenOrca"),
        (["dataset.sample=0.5"], "sample=0.5"),
        (["dataset.source=sample"], "stages="),
        (["dataset.stages=[]"], "stages"),
        (["dataset.stages=[{sampel: 0.5}]"], "sampel.*did you mean sample"),
    ],
)
def test_what_belongs_to_one_stage_is_not_given_beside_them(given: list[str], told: str) -> None:
    two = ["dataset.stages=[{}, {repo: Open-Orca/OpenOrca}]"]
    assert check(InstructConfig, composed("cfg_pretrain_instruct", two)).total_epochs == 2
    with pytest.raises(ConfigError, match=told):
        check(InstructConfig, composed("cfg_pretrain_instruct", [*two, *given]))
