"""Text from a causal model: the prompts are read once, then every token adds one position; ids in, ids out."""

from collections.abc import Collection, Iterator, Sequence

from engine.generate.batch import Batch, Memory, Row, Token, padded
from engine.generate.options import DecodeOptions
from engine.generate.token_reader import TokenReader, token_reader
from engine.runtime.devices import to_device
from models.act import ActModel
from models.kv_cache import KeyValueMemory, RecomputeMemory
from models.retnet.model import RetentionMemory, RetNet


class Decoding(Batch):
    """Generates one token per row and iteration, until every row has ended: by a stop id, its length, or `stop`.

    `max_new_tokens` holds for all rows, or for each; `open_lengths` are those of the rows. With `forced` the rows take
    these ids instead of choosing, and the tokens report how likely they were.
    """

    def __init__(
        self,
        model: ActModel,
        prompts: Sequence[Sequence[int]],
        options: DecodeOptions,
        *,
        max_new_tokens: int | Sequence[int] = 1,
        stop_ids: Collection[int] = (),
        open_lengths: Sequence[int] | None = None,
        forced: Sequence[Sequence[int]] | None = None,
    ) -> None:
        if not prompts:
            raise ValueError("The list of prompts is empty: there is nothing to continue.")
        room = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
        if forced is not None:
            room = [len(ids) for ids in forced]
        opened = [None] * len(prompts) if open_lengths is None else open_lengths
        rows = [
            Row(number, model, prompt, options, room[number], stop_ids, opened[number])
            for number, prompt in enumerate(prompts)
        ]
        capacity = max(len(row.prompt) + row.room - 1 for row in rows)
        memory, reader = memory_of(model, options, len(rows), capacity, rows[0].num_steps, user=self)
        ids = None if forced is None else to_device(padded(forced), memory.device)
        super().__init__(model, rows, memory, reader, ids)

    def stop(self, number: int) -> None:
        """End this row after the tokens it has."""
        for row in self.rows:
            row.has_ended |= row.number == number

    def __iter__(self) -> Iterator[list[Token]]:
        (found,) = self.read_prompts()
        while True:
            assert found is not None
            yield self.choose(*found)
            if all(row.has_ended for row in self.rows):
                return
            self.drop_ended()
            found = self.read()


def memory_of(
    model: ActModel,
    options: DecodeOptions,
    rows: int,
    capacity: int,
    num_steps: int,
    *,
    user: object,
    every_step: bool = False,
) -> tuple[Memory, TokenReader | None]:
    """Room for so many rows and positions, and what reads tokens into it by compiled code where that is asked for.

    Rows that differ in their depth or exit rule need the answers of `every_step`.
    """
    if options.mode == "recompute":
        return RecomputeMemory(model, rows, capacity, num_steps), None
    if isinstance(model, RetNet):
        if num_steps != 1:
            raise ValueError(f"depth={num_steps}: a RetNet takes 1 supervision step. Leave depth out.")
        return RetentionMemory(model, rows), None
    if options.compile:
        every_step |= options.exit.kind != "none"
        reader = token_reader(model, rows, capacity, num_steps, every_step, user=user)
        reader.memory.select_rows(range(rows))
        return reader.memory, reader
    return KeyValueMemory(model, rows, capacity, num_steps), None
