"""What a run on text takes with more data and more GPUs, reckoned from measured constants: the table of docs/scaling.md.

python -m lab.scaling
python -m lab.scaling --tokens-per-second 40000 --network 10 --batch 1024
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dataset.files.flags import positive

# Measured on a CPU (docs/log.md).
TOKEN_BYTES = 2.19  # of the token store, in a file that all ranks of a machine map
DOCUMENT_BYTES = 8  # of the same
PLAN_BYTES = 40  # of each rank's plan of rows, a conversation
PROCESS_BYTES = 200e6  # of a rank before it has read anything, on a CPU
PARQUET_BYTES = 576  # of a conversation of OpenOrca
RECORDS_A_CORE = 8600  # that are read and tokenized in a second
# By definition.
WEIGHT_BYTES = 16  # of a checkpoint: a weight, its average and two moments, in float32
GRADIENT_BYTES = 4
# Assumed.
TOKENS = 400  # of a conversation
ROW = 512  # positions
RANKS = 8  # of a machine
NVLINK = 200  # GB/s between the GPUs of a machine

CONVERSATIONS = (0.5e6, 10e6, 100e6)
GPUS = (1, 8, 64)
HEAD = (
    *("conversations", "GPUs", "memory of a machine", "of it one rank's own", "scratch of a machine", "Parquet"),
    *("tokenizing", "an epoch", "a step: passes", "+ gradients", "sent by a rank"),
)


@dataclass(frozen=True)
class Cluster:
    """What is trained, and on what."""

    weights: float
    batch: int  # rows of an optimizer step
    tokens_per_second: float  # of one GPU
    cores: int  # of a machine
    network: float  # Gbit/s between machines, each way

    def pass_seconds(self, gpus: int) -> float:
        return self.batch * ROW / (self.tokens_per_second * gpus)

    def traffic(self, gpus: int) -> float:
        """Bytes that a rank sends, and receives, in a step: a ring's sum of all gradients."""
        return 2 * (gpus - 1) / gpus * GRADIENT_BYTES * self.weights

    def gradient_seconds(self, gpus: int) -> float:
        """After the last backward, which it does not overlap; a ring passes through the network of a machine once."""
        return self.traffic(gpus) / (1e9 * (NVLINK if gpus <= RANKS else self.network / 8))

    def epoch_seconds(self, conversations: float, gpus: int) -> float:
        steps = conversations * TOKENS / (self.batch * ROW)
        return steps * (self.pass_seconds(gpus) + self.gradient_seconds(gpus))

    def tokenizing_seconds(self, conversations: float) -> float:
        """Every machine reads the whole corpus once."""
        return conversations / (RECORDS_A_CORE * self.cores)

    def last_gpus(self) -> float:
        """With so many the gradients take as long as the passes."""
        return self.pass_seconds(1) * self.network / 8 * 1e9 / (2 * GRADIENT_BYTES * self.weights)


def store_bytes(conversations: float) -> float:
    return conversations * (TOKENS * TOKEN_BYTES + DOCUMENT_BYTES)


def rank_bytes(conversations: float) -> float:
    return PROCESS_BYTES + conversations * PLAN_BYTES


def machine_bytes(conversations: float, ranks: int) -> float:
    return store_bytes(conversations) + ranks * rank_bytes(conversations)


def size(count: float) -> str:
    return f"{count / 1e9:.3g} GB"


def time(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{1000 * seconds:.3g} ms"


def rows(cluster: Cluster) -> Iterator[tuple[str, ...]]:
    for conversations in CONVERSATIONS:
        for gpus in GPUS:
            yield (
                f"{conversations / 1e6:g} million",
                str(gpus),
                size(machine_bytes(conversations, min(gpus, RANKS))),
                size(rank_bytes(conversations)),
                size(store_bytes(conversations)) if gpus > 1 else "none",
                size(conversations * PARQUET_BYTES),
                time(cluster.tokenizing_seconds(conversations)),
                time(cluster.epoch_seconds(conversations, gpus)),
                time(cluster.pass_seconds(gpus)),
                time(cluster.gradient_seconds(gpus)),
                size(cluster.traffic(gpus)),
            )


def page(cluster: Cluster) -> str:
    """The table, and where it stops."""
    table = [HEAD, ("---",) * len(HEAD), *rows(cluster)]
    full = (512e9 - RANKS * PROCESS_BYTES) / (machine_bytes(1, RANKS) - RANKS * PROCESS_BYTES)
    lines = [
        *(f"| {' | '.join(row)} |" for row in table),
        "",
        f"- A checkpoint of {cluster.weights / 1e6:g} million weights takes {WEIGHT_BYTES * cluster.weights / 1e6:.0f} MB.",
        f"- At {cluster.network:g} Gbit/s between machines the gradients take as long as the passes with "
        f"{cluster.last_gpus():.0f} GPUs, and a tenth as long with {cluster.last_gpus() / 10:.0f}; a batch of {cluster.batch} "
        f"rows cannot be shared by more than {cluster.batch}.",
        f"- A machine of 512 GB and {RANKS} ranks is full at {full / 1e6:.0f} million conversations.",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m lab.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=positive, default=23_000_000, help="of the network (default %(default)s)")
    parser.add_argument("--batch", type=positive, default=512, help="global_batch_size, in rows of 512 (default 512)")
    parser.add_argument(
        "--tokens-per-second",
        type=positive,
        default=13_000,
        help="of one GPU, as the progress bar says (default 13000)",
    )
    parser.add_argument("--cores", type=positive, default=16, help="of a machine (default %(default)s)")
    parser.add_argument("--network", type=positive, default=100, help="Gbit/s between machines (default %(default)s)")
    print(page(Cluster(**vars(parser.parse_args(arguments)))))


if __name__ == "__main__":
    main()
