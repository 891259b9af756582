"""Makes one data set of several: identifiers that do not collide, distinct set names, merged metadata."""

from collections import Counter

from dataset.common import PuzzleDatasetMetadata
from dataset.puzzles.format import PuzzleSplit, identifier_range

MUST_AGREE = ("seq_len", "vocab_size", "pad_id", "ignore_label_id", "blank_identifier_id")


def identifier_offsets(dataset_paths: list[str]) -> dict[str, int]:
    """What to add to the puzzle identifiers of each data set so that no two share one.

    The first data set keeps its identifiers. A later one whose range is still free (built with
    --puzzle-identifiers-start) keeps them as well; any other is moved behind all before it: by the number of their
    identifiers less one, for the blank identifier 0 belongs to all of them and is never moved.
    """
    offsets: dict[str, int] = {}
    taken: list[range] = []
    for path in dataset_paths:
        own = identifier_range(path)
        is_free = all(own.stop <= other.start or other.stop <= own.start for other in taken)
        offsets[path] = 0 if is_free else max(other.stop for other in taken) - own.start
        if len(own):
            taken.append(range(own.start + offsets[path], own.stop + offsets[path]))
    return offsets


def merged_metadata(splits: list[PuzzleSplit], identifier_paths: list[str]) -> PuzzleDatasetMetadata:
    """The metadata of all splits together; of a single one it is its own."""
    first = splits[0].metadata
    for other in splits[1:]:
        differing = differences(first, other.metadata)
        if differing:
            raise ValueError(
                f"{splits[0].folder} and {other.folder} cannot be mixed: {differing}. "
                "Train on one of them, or rebuild them alike."
            )
    offsets = identifier_offsets(identifier_paths)
    ends = [identifier_range(path).stop + offset for path, offset in offsets.items()]
    total_puzzles = sum(split.metadata.total_puzzles for split in splits)
    total_examples = sum(split.metadata.mean_puzzle_examples * split.metadata.total_puzzles for split in splits)
    return first.model_copy(
        update={
            "num_puzzle_identifiers": max(ends),
            "total_groups": sum(split.metadata.total_groups for split in splits),
            "total_puzzles": total_puzzles,
            "mean_puzzle_examples": total_examples / max(1, total_puzzles),
            "sets": distinct_set_names(splits),
        }
    )


def differences(one: PuzzleDatasetMetadata, other: PuzzleDatasetMetadata) -> str:
    """Where two data sets that one model is to read disagree; empty if they do not."""
    pairs = [(field, getattr(one, field), getattr(other, field)) for field in MUST_AGREE]
    return ", ".join(f"{field}={ours} and {theirs}" for field, ours, theirs in pairs if ours != theirs)


def distinct_set_names(splits: list[PuzzleSplit]) -> list[str]:
    """Set names as they are, or `name@folder` (`name@folder#2`, ...) where several data sets use the same name."""
    count = Counter(name for split in splits for name in split.sets)
    names: list[str] = []
    for split in splits:
        for name in split.sets:
            wanted = name if count[name] == 1 else f"{name}@{split.folder.parent.name}"
            earlier = sum(other.partition("#")[0] == wanted for other in names)
            names.append(wanted if not earlier else f"{wanted}#{earlier + 1}")
    return names
