"""What the server counts, in the text format of Prometheus."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence

FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Histogram:
    """How many observations are at most as large as each bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str) -> list[str]:
        found, total = [], 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            total += count
            found.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*found, f"{name}_sum {self.sum:.6f}", f"{name}_count {total}"]


class Metrics:
    """Counted since the start, by every server."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()  # by path and outcome

    def text(self, gauges: Mapping[str, float]) -> str:
        """All of it, with what is so at the moment."""
        return "\n".join(self._lines(gauges)) + "\n"

    def _lines(self, gauges: Mapping[str, float]) -> list[str]:
        found = ["# TYPE trm_requests_total counter"]
        for (path, outcome), count in sorted(self.requests.items()):
            found.append(f'trm_requests_total{{path="{path}",outcome="{outcome}"}} {count}')
        for name, gauge in gauges.items():
            found += [f"# TYPE {name} gauge", f"{name} {gauge:g}"]
        return found


class TextMetrics(Metrics):
    """Of a server of text, which also counts tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt_tokens = self.generated_tokens = 0
        self.first_token, self.token = Histogram(FIRST_TOKEN_SECONDS), Histogram(TOKEN_SECONDS)

    def _lines(self, gauges: Mapping[str, float]) -> list[str]:
        found = super()._lines(gauges)
        counts = {"trm_prompt_tokens_total": self.prompt_tokens, "trm_generated_tokens_total": self.generated_tokens}
        for name, value in counts.items():
            found += [f"# TYPE {name} counter", f"{name} {value}"]
        histograms = {"trm_first_token_seconds": self.first_token, "trm_token_seconds": self.token}
        for name, histogram in histograms.items():
            found += [f"# TYPE {name} histogram", *histogram.lines(name)]
        return found
