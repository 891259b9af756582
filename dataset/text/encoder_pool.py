"""The pool of encoder processes: chunk after chunk of a corpus is encoded, always in the same order."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Chunk = TypeVar("Chunk")
Result = TypeVar("Result")


class EncoderPool(Generic[Chunk, Result]):
    """Encodes chunks in this process, or in several; the results and their order are the same with any number.

    Every process calls `make_encoder` once, which must therefore be picklable. The first `num_alone` chunks are encoded
    here: a small corpus is done before processes have started. An error of an encoder is raised where its result would
    have been returned. Processes ignore Ctrl-C; leaving the `with` block ends them.
    """

    def __init__(
        self, make_encoder: Callable[[], Callable[[Chunk], Result]], num_processes: int, num_alone: int = 0
    ) -> None:
        self._make_encoder = make_encoder
        self._num_processes = num_processes
        self._num_alone = num_alone
        self._encoder: Callable[[Chunk], Result] | None = None
        self._processes: ProcessPoolExecutor | None = None

    def __enter__(self) -> "EncoderPool[Chunk, Result]":
        return self

    def __exit__(self, *error: object) -> None:
        if self._processes is not None:
            self._processes.shutdown(cancel_futures=True)

    def encode(self, chunks: Iterable[Chunk]) -> Iterator[Result]:
        """The result of each chunk, in order; only a few chunks are read ahead of the results."""
        remaining = iter(chunks)
        for chunk in remaining if self._num_processes == 1 else islice(remaining, self._num_alone):
            self._encoder = self._encoder or self._make_encoder()
            yield self._encoder(chunk)
        following = next(remaining, None)
        if following is not None:
            yield from self._encode_in_processes(chain([following], remaining))

    def _encode_in_processes(self, chunks: Iterable[Chunk]) -> Iterator[Result]:
        self._processes = self._processes or ProcessPoolExecutor(
            self._num_processes, initializer=_start_process, initargs=(self._make_encoder,)
        )
        waiting: deque[Future[Result]] = deque()
        try:
            for chunk in chunks:
                waiting.append(self._processes.submit(_encode_in_process, chunk))
                if len(waiting) > 2 * self._num_processes:  # so few that the text of a corpus is never all in memory
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise ValueError(
                f"One of {self._num_processes} encoder processes ended unexpectedly, most likely for lack of memory. "
                "Use fewer of them (--num-workers, where the program has it), or free memory."
            ) from error


def chunked(items: Iterable[Item], size_of: Callable[[Item], int], chunk_size: int) -> Iterator[list[Item]]:
    """Lists of items in order, each as short as it can be to have at least `chunk_size`; the last one has the rest."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += size_of(item)
        if size >= chunk_size:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


_process_encoder: list[Callable[[Any], Any]] = []  # the one of this worker process


def _start_process(make_encoder: Callable[[], Callable[[Any], Any]]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that can tidy up
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are as many as the cores already
    _process_encoder.append(make_encoder())


def _encode_in_process(chunk: Any) -> Any:
    return _process_encoder[0](chunk)
