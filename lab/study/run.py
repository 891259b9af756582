"""Carries a study out: trains what its results do not hold yet, several runs at once, then writes its section of the page."""

import shutil
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from itertools import count
from pathlib import Path

from dataset.files.disk import disk_errors, exclusive_lock, write_file
from lab.drawing import require_matplotlib
from lab.study.results import add_result, read_results
from lab.study.training import train_words
from lab.study.trials import Row, Study, Trial
from lab.study.workers import Workers


def run_study(study: Study, *, jobs: int, results: Path, page: Path) -> None:
    """Every run ends as a line of `results`; what is there already is not trained again."""
    require_matplotlib()
    folder = results.with_name(f"{results.stem}_runs")
    with exclusive_lock(folder):
        rows = read_results(results)
        study.prepare()
        lost = train_missing(study, rows, jobs, results, folder)
        for left in folder.iterdir():
            shutil.rmtree(left)
    if lost:
        raise ValueError(
            f"The processes of {len(lost)} runs ended unexpectedly, most likely for lack of memory: "
            f"{'; '.join(map(str, lost))}. {results.with_suffix('.log')} has what they said. Run the same command again: it "
            "repeats these runs only. With --jobs 1 it needs less memory."
        )
    write_section(study, rows, page)
    if said := study.conclusion(rows):
        print(said)


def train_missing(study: Study, rows: list[Row], jobs: int, results: Path, folder: Path) -> list[Trial]:
    """Add the missing runs to `rows` and to the file; returns those whose process died."""
    lost: list[Trial] = []
    names = count()
    with Workers[Trial](jobs, results.with_suffix(".log")) as workers:
        while True:
            trials = list(dict.fromkeys(study.trials(rows)))
            done = {Trial.of(row) for row in rows}
            settled = done | workers.busy | set(lost)
            missing = [trial for trial in trials if trial.settings is not None and trial not in settled]
            for trial in missing[: workers.num_free]:
                place = folder / str(next(names))
                shutil.rmtree(place, ignore_errors=True)  # of a study that was killed
                workers.start(trial, train_words, study.words(trial), trial.budget, str(place), study.config_name)
            if not workers.busy:
                return lost
            for trial, call in workers.finished():
                try:
                    found = call.result()
                except BrokenProcessPool:
                    lost.append(trial)
                    print(f"study: {trial}: its process ended unexpectedly", file=sys.stderr)
                    continue
                row = asdict(trial) | found | {"metrics": study.kept(found["metrics"])}
                rows.append(row)
                add_result(results, row)
                print(progress(study, row, trials, rows, jobs), file=sys.stderr)


def progress(study: Study, row: Row, trials: Sequence[Trial], rows: Sequence[Row], jobs: int) -> str:
    """What a run came to, and how long the others will take at the pace of those that are done."""
    done = {Trial.of(row) for row in rows}
    said = "diverged" if "diverged" in row else f"{study.headline(row)}, {row['seconds']:.0f} s"
    left = [trial for trial in trials if trial not in done]
    time_left = ""
    if left:
        pace = statistics.mean(row.get("whole_seconds", row["seconds"]) / row["budget"] for row in rows)
        time_left = f"; about {pace * sum(trial.budget for trial in left) / jobs / 60:.0f} minutes left"
    return f"study: {len(trials) - len(left)} of {len(trials)} runs, {Trial.of(row)}: {said}{time_left}"


def write_section(study: Study, rows: Sequence[Row], page: Path) -> None:
    """Replace what stands between the study's marks of the page, at its end if it has none yet."""
    begin, end = (f"<!-- {study.mark}: {word} -->" for word in ("begin", "end"))
    text = page.read_text(encoding="utf-8") if page.exists() else f"# {study.title}\n"
    if begin not in text or end not in text.partition(begin)[2]:
        text += f"\n{begin}\n{end}\n"
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    with disk_errors(page):
        page.parent.mkdir(parents=True, exist_ok=True)
        write_file(page, f"{before}{begin}\n{study.section(rows, page)}\n{end}{after}")
    print(page)
