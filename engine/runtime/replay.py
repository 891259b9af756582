"""Work of the device that is recorded once, as CUDA graphs, and then started again as a whole."""

import sys
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch

Result = TypeVar("Result")


class Replayed(Generic[Result]):
    """Iterates over the results of `work`, which makes `num_pieces` of them; on CUDA each piece is one launch.

    The work reads and writes the same tensors every time, waits for nothing, and may be done twice in a row with the
    same outcome. A result stands where the recording put it, until that piece is done again. Elsewhere than on CUDA,
    and where recording fails, the work is simply done.
    """

    def __init__(self, work: Callable[[], Iterator[Result]], num_pieces: int, device: torch.device) -> None:
        self.work, self.num_pieces, self.device = work, num_pieces, device
        self.pieces: list[tuple[torch.cuda.CUDAGraph, Result]] = []
        self.is_recorded = device.type == "cuda"

    def __iter__(self) -> Iterator[Result]:
        if self.is_recorded and not self.pieces:
            self._warm_up()
            try:
                self.pieces = self._recorded()
            except RuntimeError as error:
                self.is_recorded = False
                print(f"No CUDA graph, every kernel is launched by itself: {error}", file=sys.stderr)
        if not self.is_recorded:
            yield from self.work()
        for graph, result in self.pieces:
            graph.replay()
            yield result

    def _warm_up(self) -> None:
        """Do the work once, so that what it compiles and allocates for good is there before it is recorded."""
        main, side = torch.cuda.current_stream(self.device), torch.cuda.Stream(self.device)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            for _ in self.work():
                pass
        main.wait_stream(side)

    def _recorded(self) -> list[tuple[torch.cuda.CUDAGraph, Result]]:
        pieces, work = [], self.work()
        with torch.cuda.device(self.device):
            pool = torch.cuda.graph_pool_handle()
            for _ in range(self.num_pieces):
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                    result = next(work)
                pieces.append((graph, result))
        return pieces
