"""What the exit rules of a checkpoint spend on questions of known depth: passes by hops, and accuracy against passes."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from dataset.text.conversation import Turn
from engine.build.corpus import composition_records
from engine.build.text_checkpoint import LoadedModel
from engine.config.text import InstructConfig
from engine.generate.exits import calibrated_options
from engine.generate.options import DecodeOptions, ExitKind, ExitRule, ReplyOptions
from engine.generate.reply import reply
from lab.drawing import FAINT, INK, MUTED, RED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 128  # questions that are answered at once
FACTS = "facts"  # the trained questions of one hop
COLORS: dict[ExitKind, str] = {"head": RED, "margin": "#2a7f9e", "kl": "#e0a030"}
Report = dict[str, dict[str, dict[str, float]]]  # way of answering -> set -> accuracy, passes of the answer, hops


@dataclass(frozen=True)
class Asked:
    """The questions of one set, none of which a threshold was fitted on."""

    name: str
    questions: list[str]
    answers: list[str]
    hops: float


def measured(loaded: LoadedModel) -> Report:
    """Every set answered after each number of passes up to the calibrated one, and under every calibrated rule."""
    config = loaded.config
    if not isinstance(config, InstructConfig) or config.dataset.source != "composition":
        raise ValueError(
            f"{loaded.path}: expected a checkpoint of dataset.source=composition, whose questions have depths."
        )
    sets = asked_of(composition_records(config))
    ways: dict[str, ReplyOptions] = {}
    for kind in get_args(ExitKind):
        asked = ReplyOptions(max_tokens=4, decode=DecodeOptions(exit=ExitRule(kind)))
        ways[kind] = calibrated_options(asked, loaded.path)
        deepest = ways[kind].decode.depth
    assert isinstance(deepest, int)
    ways |= {str(depth): ReplyOptions(4, decode=DecodeOptions(depth=depth)) for depth in range(1, deepest + 1)}
    return {way: {asked.name: answered(loaded, asked, options) for asked in sets} for way, options in ways.items()}


def asked_of(records: dict[str, list[dict[str, Any]]]) -> list[Asked]:
    """The facts, and of each held-out set every second question: calibration fits on the others."""
    held_out = {name: found[1::2] for name, found in records.items() if name not in ("train", "validation")}
    trained = sorted({question for record in records["train"] for question in questions_of(record)})
    asked = {FACTS: [question for question in trained if question[2] == 1]}
    asked |= {
        name: [question for record in found for question in questions_of(record)] for name, found in held_out.items()
    }
    return [
        Asked(name, [one[0] for one in found], [one[1] for one in found], hops=fmean(one[2] for one in found))
        for name, found in asked.items()
        if found
    ]


def questions_of(record: dict[str, Any]) -> list[tuple[str, str, int]]:
    """The questions of a conversation, each with its answer and its hops."""
    texts = [message["value"] for message in record["conversations"]]
    return list(zip(texts[::2], texts[1::2], record["hops"], strict=True))


def answered(loaded: LoadedModel, asked: Asked, options: ReplyOptions) -> dict[str, float]:
    """Share of right answers, and mean passes of their first token, which is the answer, and of all their tokens."""
    right: list[float] = []
    passes: list[float] = []
    all_passes: list[float] = []
    for first in range(0, len(asked.questions), ROWS):
        turns = [[Turn("user", question)] for question in asked.questions[first : first + ROWS]]
        for answer, expected in zip(reply(loaded, turns, options), asked.answers[first : first + ROWS], strict=True):
            right.append(answer.text == expected)
            passes.append(answer.tokens[0].depth)
            all_passes += [token.depth for token in answer.tokens]
    means = {"accuracy": right, "passes": passes, "passes_of_all_tokens": all_passes}
    return {"hops": asked.hops} | {name: fmean(values) for name, values in means.items()}


def summary(report: Report, way: str) -> dict[str, float]:
    """Means over the facts and the `id` sets, and how well passes follow hops: 1 where more hops always take more."""
    sets = [found for name, found in report[way].items() if not name.startswith("ood")]
    means = {name: fmean(found[name] for found in sets) for name in ("accuracy", "passes")}
    return means | {"rank_correlation": rank_correlation(*([found[x] for found in sets] for x in ("hops", "passes")))}


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's; ties share their mean rank. 0 where one of the two does not vary."""
    ranks = [
        np.mean([np.searchsorted(np.sort(x), x, side) for side in ("left", "right")], axis=0) for x in (one, other)
    ]
    return float(np.corrcoef(*ranks)[0, 1]) if all(np.ptp(rank) for rank in ranks) else 0.0


def table(report: Report) -> str:
    """Markdown: a row a way of answering, a column a set; accuracy, and passes in brackets."""
    sets = list(next(iter(report.values())))
    head = ["answered after", *sets, "facts and id: accuracy", "passes", "rank correlation"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for way, found in report.items():
        means = summary(report, way)
        cells = [f"{found[name]['accuracy']:.2f} ({found[name]['passes']:.1f})" for name in sets]
        cells += [f"{means['accuracy']:.3f}", f"{means['passes']:.2f}", f"{means['rank_correlation']:.2f}"]
        lines.append(" | ".join([f"{way} passes" if way.isdecimal() else f"`{way}`", *cells]))
    return "\n".join(f"| {line} |" for line in lines)


def draw(report: Report) -> "Figure":
    """Left passes by hops, right accuracy against mean passes beside fixed depths."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    fixed = [way for way in report if way.isdecimal()]
    id_sets = [name for name in report[fixed[0]] if not name.startswith("ood")]
    hops = [report[fixed[0]][name]["hops"] for name in id_sets]
    left.plot(hops, hops, color=FAINT, linestyle="--", label="one pass a hop")
    left.axhline(len(fixed), color=MUTED, linewidth=1, linestyle=":", label="full depth")
    points = [summary(report, way) for way in fixed]
    values = {name: [point[name] for point in points] for name in ("passes", "accuracy")}
    right.plot(values["passes"], values["accuracy"], color=MUTED, marker="o", markersize=4, label="fixed depth")
    for kind, color in COLORS.items():
        passes = [report[kind][name]["passes"] for name in id_sets]
        left.plot(hops, passes, color=color, marker="o", markersize=4, label=kind)
        found = summary(report, kind)
        right.plot(found["passes"], found["accuracy"], color=color, marker="D", linestyle="none", label=kind)
    names: list[tuple[Any, str, str, str]] = [
        (left, "hops of the question", "passes of the answer", "What a question costs"),
        (right, "mean passes", "exact accuracy", "What it gives: facts and id2 to the longest"),
    ]
    for axes, x, y, title in names:
        axes.set_xlabel(x, color=INK)
        axes.set_ylabel(y, color=INK)
        axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8.5)
    return figure
