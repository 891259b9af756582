"""What encoding conversations gives, whatever they are read from: documents by split, and what became of the rest."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dataset.text.conversation import EncodedConversation
from dataset.text.token_store import EncodedDocuments, join_documents


def split_of(name: str) -> str:
    """The split that a set belongs to: the training sets of later stages are `train 2`, `train 3`, …"""
    return "train" if name.partition(" ")[0] == "train" else "test"


@dataclass
class SplitReport:
    """What became of the conversations of a split."""

    conversations: int = 0  # kept ones
    documents: int = 0  # more than conversations where long ones were split
    tokens: int = 0
    trained_tokens: int = 0
    lost_tokens: int = 0  # would be trained if nothing were too long
    truncated: int = 0
    divided: int = 0
    dropped: Counter[str] = field(default_factory=Counter)  # by reason
    longest: int = 0

    def add(self, other: "SplitReport") -> None:
        for name in vars(self):
            if name != "longest":
                setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest = max(self.longest, other.longest)


@dataclass(frozen=True)
class EncodedChunk:
    documents: dict[str, EncodedDocuments]  # by split
    reports: dict[str, SplitReport]


class ChunkBuilder:
    """Collects the encoded conversations of a chunk."""

    def __init__(self) -> None:
        self._kept: defaultdict[str, list[EncodedConversation]] = defaultdict(list)
        self.reports: defaultdict[str, SplitReport] = defaultdict(SplitReport)  # by split

    def keep(self, split: str, pieces: Sequence[EncodedConversation]) -> None:
        """A conversation as one document or several."""
        self._kept[split].extend(pieces)
        report = self.reports[split]
        report.conversations += 1
        report.divided += len(pieces) > 1
        report.truncated += any(piece.is_truncated for piece in pieces)

    def drop(self, split: str, reason: str) -> None:
        self.reports[split].dropped[reason] += 1

    def build(self) -> EncodedChunk:
        documents = {split: join_documents(pieces) for split, pieces in self._kept.items()}
        for split, joined in documents.items():  # counted together, which is faster than one by one
            report = self.reports[split]
            report.documents = len(joined.lengths)
            report.tokens = len(joined.ids)
            report.trained_tokens = int(joined.is_trained.sum())
            report.longest = int(joined.lengths.max())
        return EncodedChunk(documents, dict(self.reports))


def described(counts: Counter[str]) -> str:
    """Records by the reason why they were left out, in words."""
    return "; ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "none"


@dataclass
class LoadReport:
    """What became of the records of a corpus."""

    source: str
    splits: dict[str, SplitReport]  # by set
    seconds: float = 0.0

    @property
    def total(self) -> SplitReport:
        return self._sum(self.splits)

    @property
    def trained(self) -> SplitReport:
        """Of all stages."""
        return self._sum(name for name in self.splits if split_of(name) == "train")

    @property
    def held_out(self) -> SplitReport:
        """Of all sets that are not trained on."""
        return self._sum(name for name in self.splits if split_of(name) == "test")

    def _sum(self, names: Iterable[str]) -> SplitReport:
        total = SplitReport()
        for name in names:
            total.add(self.splits[name])
        return total

    @property
    def records(self) -> int:
        return self.total.conversations + self.total.dropped.total()

    def summary(self) -> str:
        total = self.total
        return (
            f"{self.source}: {self.records} records read in {self.seconds:.1f} s\n"
            f"  kept: {self.trained.conversations} train, {self.held_out.conversations} test "
            f"({total.truncated} of them truncated)\n"
            f"  skipped: {described(total.dropped)}\n"
            f"  tokens: {total.tokens}, of which {total.trained_tokens} are trained"
        )
