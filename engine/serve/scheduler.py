"""One thread owns the model: requests wait in turn, join the running batch between two tokens, and leave it."""

import threading
import traceback
from collections import deque
from collections.abc import Callable
from itertools import count

from engine.build.text_checkpoint import LoadedModel
from engine.generate.batch import Batch, Row, Token
from engine.generate.decode import memory_of
from engine.generate.options import DecodeOptions
from engine.generate.reply import Answering

CHUNK = 128  # positions of prompts that are read between two tokens of the others
STOP_SECONDS = 5.0  # for the token that is being computed
NUMBERS = count()


class QueueFull(Exception):
    """As many requests wait as may."""


class Job:
    """An answer that is wanted, from its place in the queue to its end.

    `tell` is called by the model's thread: with every token and the text that became certain by it, and at the end with
    None, or with what went wrong.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        answering: Answering,
        options: DecodeOptions,
        tell: Callable[[tuple[Token, str] | Exception | None], None],
    ) -> None:
        self.answering, self.tell = answering, tell
        self.row = Row(
            next(NUMBERS),
            loaded.model,
            answering.ids,
            options,
            answering.room,
            answering.stop_ids,
            answering.open_length,
        )


class Scheduler:
    """A batch of at most `answers_at_once` rows, for which all memory is there from the start, and the queue before it.

    Clients take turns in the queue; what one of them asks is answered in order.
    """

    def __init__(
        self, loaded: LoadedModel, options: DecodeOptions, num_steps: int, answers_at_once: int, max_waiting: int
    ) -> None:
        self.loaded, self.num_steps = loaded, num_steps
        self.answers_at_once, self.max_waiting = answers_at_once, max_waiting
        memory, reader = memory_of(
            loaded.model, options, answers_at_once, loaded.window, num_steps, user=self, every_step=True
        )
        memory.select_rows([])
        self.batch = Batch(loaded.model, [], memory, reader)
        self.joining: Batch | None = None  # whose prompts are being read
        self.jobs: dict[int, Job] = {}  # that are being answered
        self.waiting: dict[str, deque[Job]] = {}  # by client; the first client is the next
        self.changed = threading.Condition()
        self.is_stopping = False
        self.thread = threading.Thread(target=self._run, name="model", daemon=True)
        self.thread.start()

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self.waiting.values()))

    def submit(self, job: Job, client: str) -> None:
        """Queue an answer; too many waiting raise QueueFull."""
        if job.row.num_steps > self.num_steps:
            raise ValueError(
                f"depth={job.row.num_steps}: this server goes to at most {self.num_steps} supervision steps."
            )
        with self.changed:
            if self.num_waiting >= self.max_waiting:
                raise QueueFull(f"{self.num_waiting} requests are waiting. Try again in a moment.")
            self.waiting.setdefault(client, deque()).append(job)
            self.changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody wants this answer any more."""
        job.row.has_ended = True
        with self.changed:
            for client, jobs in list(self.waiting.items()):
                if job in jobs:
                    jobs.remove(job)
                    if not jobs:
                        del self.waiting[client]

    def stop(self) -> None:
        """End all answers, those that wait too, each with a word to whoever asked."""
        with self.changed:
            self.is_stopping = True
            self.changed.notify()
        self.thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while True:
            with self.changed:
                while not (self.jobs or self.waiting or self.is_stopping):
                    self.changed.wait()
                if self.is_stopping:
                    self._fail(InterruptedError("The server is stopping."))
                    for jobs in self.waiting.values():
                        for job in jobs:
                            job.tell(InterruptedError("The server is stopping."))
                    return
            try:
                self._step()
            except Exception as error:  # noqa: BLE001 - such as memory that the device does not have
                traceback.print_exc()
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        for job in self.jobs.values():
            job.tell(error)
            job.row.has_ended = True
        self.jobs.clear()
        self.joining = None
        self.batch.drop_ended()

    def _step(self) -> None:
        """Read a part of the prompts of those that join, and a token of each row that runs."""
        self.batch.drop_ended()
        for number in [number for number, job in self.jobs.items() if job.row.has_ended]:
            del self.jobs[number]
        if self.joining is None and (taken := self._taken()):
            rows = [job.row for job in taken]
            longest, deepest = max(len(row.prompt) for row in rows), max(row.num_steps for row in rows)
            memory, _ = memory_of(self.loaded.model, DecodeOptions(), len(rows), longest, deepest, user=self)
            self.joining = Batch(self.loaded.model, rows, memory)
            self.parts = self.joining.read_prompts(CHUNK)
        if self.joining is not None:
            self._join(self.joining)
        if self.batch.rows:
            self._tell(self.batch.choose(*self.batch.read()))

    def _taken(self) -> list[Job]:
        """The next jobs that wait, with prompts that can be read in one part; a longer one comes alone."""
        taken: list[Job] = []
        longest = 0
        with self.changed:
            while self.waiting and len(self.batch.rows) + len(taken) < self.answers_at_once:
                client, jobs = next(iter(self.waiting.items()))
                longest = max(longest, len(jobs[0].row.prompt))
                if taken and longest * (len(taken) + 1) > CHUNK:
                    break
                taken.append(jobs.popleft())
                del self.waiting[client]
                if jobs:
                    self.waiting[client] = jobs
            self.jobs |= {job.row.number: job for job in taken}
        return taken

    def _join(self, joining: Batch) -> None:
        found = None if all(row.has_ended for row in joining.rows) else next(self.parts)
        if found is not None:
            self._tell(joining.choose(*found))
            joining.drop_ended()
            if joining.rows:
                self.batch.add(joining)
        if found is not None or all(row.has_ended for row in joining.rows):
            self.joining = None

    def _tell(self, tokens: list[Token]) -> None:
        for token in tokens:
            if (job := self.jobs.get(token.row)) is None:
                continue
            text = job.answering.take(token)
            job.tell((token, text))
            if job.answering.has_ended:
                job.row.has_ended = True
                job.tell(None)
                del self.jobs[token.row]
