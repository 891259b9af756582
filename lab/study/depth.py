"""The demonstration of depth: one layer applied again and again, beside a plain network of equal compute."""

from collections.abc import Sequence
from pathlib import Path

from engine.config.compose import composed
from lab.drawing import draw_cells
from lab.study.composition_page import accuracy, hops_of, mean_by_depth, spread
from lab.study.trials import Row, Trial, options_word
from lab.study.worlds import WorldStudy

LOOPED, DENSE = "one layer, applied again", "four layers"
RECIPES = {"symbols": "composition", "sentences": "composition_sentences"}


class Depth(WorldStudy):
    """The recipe of composition and its dense twin, each in several worlds."""

    mark = "depth"
    base = ("epochs=1000", "eval_interval=null")

    def __init__(self, form: str, seeds: int, tflop: float) -> None:
        recipe = RECIPES[form]
        self.variants = {LOOPED: [f"recipe={recipe}"], DENSE: [f"recipe={recipe}_dense"]}
        options = [composed("cfg_pretrain_instruct", words) for words in self.variants.values()]
        self.settings = (options_word(options),)
        self.seeds, self.budget = range(seeds), tflop * 1e12

    def trials(self, rows: Sequence[Row]) -> list[Trial]:
        return [Trial(name, seed, self.budget, self.settings) for seed in self.seeds for name in self.variants]

    def section(self, rows: Sequence[Row], page: Path) -> str:
        looped, dense = self.rows_of(LOOPED, rows), self.rows_of(DENSE, rows)
        picture = page.with_suffix(".png")
        draw(looped, dense, picture)
        return "\n\n".join(
            (self.conclusion(rows), table(looped, dense), f"![accuracy by hops and passes]({picture.name})")
        )

    def conclusion(self, rows: Sequence[Row]) -> str:
        looped, dense = self.rows_of(LOOPED, rows), self.rows_of(DENSE, rows)
        trained, most = looped[0]["depth"], hops_of(looped)[-1]
        more = most - trained
        weights = dense[0]["parameters_trunk"] / looped[0]["parameters_trunk"]

        def both(set_name: str, passes: int) -> str:
            found = [
                spread([accuracy(row, set_name, depth) for row in each])
                for each, depth in ((looped, passes), (dense, 1))
            ]
            return " against ".join(found)

        return (
            f"One layer applied {trained} times, against {weights:g} layers of equal compute and {weights:g} times the weights; "
            f"the share of held-out questions answered rightly in {len(looped)} worlds (mean and range):\n"
            f"- questions of {trained} hops, the longest trained: {both(f'id{trained}', trained)}\n"
            f"- of {most} hops, {more} more than any trained, with {more} more passes: {both(f'id{most}', most)}\n"
            f"- of 2 hops whose second fact was only ever asked alone: {both('ood2', trained)}"
        )

    def rows_of(self, variant: str, rows: Sequence[Row]) -> list[Row]:
        wanted = {trial for trial in self.trials(rows) if trial.variant == variant}
        return [row for row in rows if Trial.of(row) in wanted]


def table(looped: Sequence[Row], dense: Sequence[Row]) -> str:
    """A line for every held-out set, a column for every number of passes, and the dense twin."""
    depths = range(1, len(mean_by_depth(looped, "id2")) + 1)
    head = ["questions", *(f"{depth} pass{'es' if depth > 1 else ''}" for depth in depths), DENSE]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for name in looped[0]["metrics"]:
        cells = [spread([accuracy(row, name, depth) for row in looped]) for depth in depths]
        lines.append(f"| {' | '.join([name, *cells, spread([accuracy(row, name, 1) for row in dense])])} |")
    return "\n".join(lines)


def draw(looped: Sequence[Row], dense: Sequence[Row], picture: Path) -> None:
    """Accuracy by hops and passes, with the dense twin's column beside it."""
    from matplotlib.figure import Figure

    hops = hops_of(looped)
    cells = [mean_by_depth(looped, f"id{k}") for k in hops]
    figure = Figure(figsize=(2.6 + 0.62 * (len(cells[0]) + 1), 1.5 + 0.42 * len(hops)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[len(cells[0]), 1])
    labels = [f"{k} hops" + ("" if k <= looped[0]["depth"] else ", never trained") for k in hops]
    draw_cells(left, cells, [str(depth) for depth in range(1, len(cells[0]) + 1)], labels)
    draw_cells(right, [mean_by_depth(dense, f"id{k}")[:1] for k in hops], ["1"], labels)
    left.set_title("one layer: passes", loc="left", fontsize=10)
    right.set_title(DENSE, loc="left", fontsize=10)
    figure.savefig(picture, dpi=160)
