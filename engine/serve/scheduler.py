"""One thread owns the model: requests wait in turn, join the running batch between two tokens, and leave it."""

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from itertools import chain, count
from math import inf
from typing import Any, Generic, TypeVar

from engine.build.text_checkpoint import LoadedModel
from engine.generate.batch import Batch, Row, Token
from engine.generate.decode import memory_of
from engine.generate.options import DecodeOptions
from engine.generate.reply import Answering
from engine.serve.server import STOP_SECONDS
from models.kv_cache import KeyValueMemory

CHUNK = 128  # positions of prompts that are read between two tokens of the others
STOPPING = "The server is stopping."
NUMBERS = count()


class Unanswered(Exception):
    """Why there will be no answer, with the status that says so."""

    def __init__(self, reason: str, status: int = 503) -> None:
        super().__init__(reason)
        self.status = status


Result = TypeVar("Result")
Event = tuple[Token, str] | Exception | None  # a token and the text that became certain by it; the end


class Job:
    """An answer that is wanted, from its place in the queue to its end, at the latest at the deadline.

    `tell` is called by the model's thread, last with None or with what went wrong.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        answering: Answering,
        options: DecodeOptions,
        tell: Callable[[Event], None],
        deadline: float = inf,
    ) -> None:
        self.answering, self.tell, self.deadline = answering, tell, deadline
        self.row = Row(
            next(NUMBERS),
            loaded.model,
            answering.ids,
            options,
            answering.room,
            answering.stop_ids,
            answering.open_length,
        )


class Work(Generic[Result]):
    """Something else for the model to do, between two tokens of the answers."""

    def __init__(self, do: Callable[[], Result], tell: Callable[[Result | Unanswered], object]) -> None:
        self.do, self.tell = do, tell


class Scheduler:
    """A batch of at most `answers_at_once` rows, for which all memory is there from the start, and the queue before it.

    Clients take turns in the queue; what one of them asks is answered in order.
    """

    def __init__(
        self, loaded: LoadedModel, options: DecodeOptions, num_steps: int, answers_at_once: int, max_waiting: int
    ) -> None:
        self.loaded, self.num_steps = loaded, num_steps
        self.answers_at_once, self.max_waiting = answers_at_once, max_waiting
        try:
            memory, reader = memory_of(
                loaded.model, options, answers_at_once, loaded.window, num_steps, user=self, every_step=True
            )
        except RuntimeError as error:
            raise ValueError(
                f"--answers-at-once {answers_at_once}: there is no memory for the caches of so many rows of "
                f"{loaded.window} positions ({str(error)[:200]}). Choose fewer, or a smaller --depth."
            ) from None
        if isinstance(memory, KeyValueMemory):
            size = memory.bytes_per_token * answers_at_once * loaded.window / 1e6
            print(f"{answers_at_once} rows of {loaded.window} positions: {size:.0f} MB of caches", file=sys.stderr)
        memory.select_rows([])
        self.batch = Batch(loaded.model, [], memory, reader)
        self.joining: Batch | None = None  # whose prompts are being read
        self.jobs: dict[int, Job] = {}  # that are being answered
        self.waiting: dict[str, deque[Job | Work[Any]]] = {}  # by client; the first client is the next
        self.changed = threading.Condition()
        self.is_stopping = False
        self.thread = threading.Thread(target=self._run, name="model", daemon=True)
        self.thread.start()

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self.waiting.values()))

    def submit(self, job: Job | Work[Any], client: str) -> None:
        """Queue it; if too many wait, or the server stops, Unanswered."""
        if isinstance(job, Job) and job.row.num_steps > self.num_steps:
            raise ValueError(
                f"depth={job.row.num_steps}: this server goes to at most {self.num_steps} supervision steps."
            )
        with self.changed:
            if self.is_stopping:
                raise Unanswered(STOPPING)
            if self.num_waiting >= self.max_waiting:
                raise Unanswered(f"{self.num_waiting} requests are waiting. Try again in a moment.")
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
                    for job in (*self.jobs.values(), *chain(*self.waiting.values())):
                        job.tell(Unanswered(STOPPING))
                    return
            try:
                self._step()
            except Exception as error:  # noqa: BLE001 - such as memory that the device does not have
                traceback.print_exc()
                self._fail(Unanswered(f"The model failed: {error}", 500))

    def _fail(self, error: Unanswered) -> None:
        for job in self.jobs.values():
            job.row.has_ended = True
            job.tell(error)
        self.jobs.clear()
        self.joining = None
        self.batch.drop_ended()

    def _step(self) -> None:
        """Read a part of the prompts of those that join, and a token of each row that runs."""
        self.batch.drop_ended()
        for number in [number for number, job in self.jobs.items() if job.row.has_ended]:
            del self.jobs[number]
        if self.joining is None:
            self._take()
        if self.joining is not None:
            self._join(self.joining)
        if self.batch.rows:
            self._tell(self.batch.choose(*self.batch.read()))

    def _take(self) -> None:
        """Other work, or the next jobs that wait, with prompts that can be read in one part; a longer one comes alone."""
        taken: list[Job] = []
        longest = 0
        while job := self._next(longest, len(taken)):
            if isinstance(job, Work):
                try:
                    job.tell(job.do())
                except Exception as error:  # noqa: BLE001 - whoever wants it is told
                    job.tell(Unanswered(str(error), 400 if isinstance(error, ValueError) else 500))
                break
            if time.monotonic() > job.deadline:
                job.tell(Unanswered("The answer's time was over while it waited. Try again later."))
                continue
            taken.append(job)
            longest = max(longest, len(job.row.prompt))
            self.jobs[job.row.number] = job
        if taken:
            rows = [job.row for job in taken]
            memory, _ = memory_of(
                self.loaded.model, DecodeOptions(), len(rows), longest, max(row.num_steps for row in rows), user=self
            )
            self.joining = Batch(self.loaded.model, rows, memory)
            self.parts = self.joining.read_prompts(CHUNK)

    def _next(self, longest: int, taken: int) -> Job | Work[Any] | None:
        """The next in the queue, if it is other work or can join those that were taken, with so many ids at most."""
        with self.changed:
            if not self.waiting:
                return None
            client, jobs = next(iter(self.waiting.items()))
            if isinstance(first := jobs[0], Job):
                is_full = len(self.batch.rows) + taken >= self.answers_at_once
                if is_full or (taken and max(longest, len(first.row.prompt)) * (taken + 1) > CHUNK):
                    return None
            job = jobs.popleft()
            del self.waiting[client]
            if jobs:
                self.waiting[client] = jobs
            return job

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
            if not job.answering.has_ended and time.monotonic() > job.deadline:
                text += job.answering.cut()
            if job.answering.has_ended:
                job.row.has_ended = True
                del self.jobs[token.row]  # before its end is told: who has the answer finds it no longer running
            job.tell((token, text))
            if job.answering.has_ended:
                job.tell(None)
