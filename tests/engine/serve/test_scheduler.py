"""The queue before the model: who is next, who leaves, and how long a newcomer waits while others are answered."""

import threading
import time
from collections import defaultdict
from dataclasses import replace
from queue import SimpleQueue

import pytest

from engine.generate.batch import Batch
from engine.generate.options import DecodeOptions, ReplyOptions, SamplingOptions
from engine.generate.reply import Answering
from engine.serve.scheduler import CHUNK, Job, Scheduler, Unanswered, Work
from models.kv_cache import KeyValueMemory
from tests.models.small_retnet import make_model


@pytest.fixture(scope="module")
def loaded(instructed):
    """Whose answers end by their length alone."""
    return replace(instructed, stop_ids=frozenset())


class Asked:
    """What became of a job."""

    def __init__(self, scheduler, loaded, prompt=(5, 6, 7), room=8, client="a", seed=0, seconds=60.0, **options):
        self.found, self.tokens = SimpleQueue(), []
        decode = DecodeOptions(SamplingOptions(temperature=1.5, seed=seed), **options)
        answering = Answering(loaded, list(prompt), room, ReplyOptions(decode=decode))
        self.job = Job(loaded, answering, decode, self.found.put, time.monotonic() + seconds)
        scheduler.submit(self.job, client)

    def next(self):
        event = self.found.get(timeout=30)
        if isinstance(event, tuple):
            self.tokens.append(event[0])
        return event

    def rest(self):
        while isinstance(event := self.next(), tuple):
            pass
        assert event is None, event
        return [token.id for token in self.tokens]


@pytest.fixture
def started(loaded):
    running = []

    def start(answers_at_once=4, max_waiting=64):
        steps = loaded.model.config.halt_max_steps
        running.append(Scheduler(loaded, DecodeOptions(), steps, answers_at_once, max_waiting))
        return running[-1]

    yield start
    for scheduler in running:
        scheduler.stop()


@pytest.fixture
def gate(monkeypatch):
    """Holds the model's thread before each token until it is told to go."""
    going, honest = threading.Semaphore(0), Batch.read

    def read(batch):
        going.acquire(timeout=30)
        return honest(batch)

    monkeypatch.setattr(Batch, "read", read)
    yield going
    going.release(10_000)


def test_answers_at_once_are_those_that_each_alone_would_be(started, loaded):
    scheduler = started()
    wanted = [{"prompt": [3 + n] * (1 + n), "room": 3 + n % 5, "seed": n, "depth": 1 + n % 2} for n in range(12)]
    alone = [Asked(scheduler, loaded, **one).rest() for one in wanted]
    together = [asked.rest() for asked in [Asked(scheduler, loaded, **one) for one in wanted]]
    assert together == alone and len({tuple(ids) for ids in alone}) == len(wanted)


def test_a_prompt_longer_than_a_chunk_is_read_between_the_tokens_of_the_others(started, loaded, monkeypatch):
    monkeypatch.setattr("engine.serve.scheduler.CHUNK", 4)
    scheduler, order = started(), []
    first = Asked(scheduler, loaded, room=30)
    first.next()
    honest = KeyValueMemory.read

    def read(memory, ids, *given):
        order.append(ids.shape[1])
        return honest(memory, ids, *given)

    monkeypatch.setattr(KeyValueMemory, "read", read)
    Asked(scheduler, loaded, prompt=[5] * 12, room=3).rest()
    places = [place for place, length in enumerate(order) if length == 4]
    assert len(places) == 3 and all(order[place + 1] == 1 for place in places)
    first.rest()


def test_prompts_that_wait_together_are_read_together(started, loaded, gate, monkeypatch):
    scheduler, sizes = started(answers_at_once=16), []
    first = Asked(scheduler, loaded)
    first.next()
    honest = Batch.read_prompts
    monkeypatch.setattr(
        Batch, "read_prompts", lambda batch, *given: sizes.append(len(batch.rows)) or honest(batch, *given)
    )
    several = [Asked(scheduler, loaded, prompt=[5] * (CHUNK // 4)) for _ in range(6)]
    gate.release(10_000)
    for asked in (first, *several):
        asked.rest()
    assert sizes == [4, 2]


def test_clients_take_turns_and_a_queue_that_is_full_says_so(started, loaded, gate):
    scheduler = started(answers_at_once=1, max_waiting=5)
    first = Asked(scheduler, loaded, room=2)
    first.next()
    order = []
    eager = [Asked(scheduler, loaded, client="eager", room=1, seed=n) for n in range(4)]
    late = Asked(scheduler, loaded, client="late", room=1)
    with pytest.raises(Unanswered, match="5"):
        Asked(scheduler, loaded)
    for name, asked in [*((f"eager {n}", asked) for n, asked in enumerate(eager)), ("late", late)]:
        tell = asked.job.tell
        asked.job.tell = lambda event, name=name, tell=tell: (
            order.append(name) if event is None else None,
            tell(event),
        )
    gate.release(10_000)
    for asked in (first, *eager, late):
        asked.rest()
    assert order == ["eager 0", "late", "eager 1", "eager 2", "eager 3"]


def test_who_is_cancelled_leaves_running_or_waiting(started, loaded, gate):
    scheduler = started(answers_at_once=1)
    running, waiting, last = (Asked(scheduler, loaded, room=n) for n in (40, 40, 3))
    running.next()
    scheduler.cancel(waiting.job)
    assert scheduler.num_waiting == 1
    scheduler.cancel(running.job)
    gate.release(10_000)
    assert len(last.rest()) == 3
    assert running.found.qsize() <= 1, "the token that was being computed"
    assert not waiting.tokens and waiting.found.empty()


def test_a_fault_of_the_model_is_told_and_the_next_answer_is_whole(started, loaded, monkeypatch, capfd):
    scheduler, honest = started(), Batch.choose
    expected = Asked(scheduler, loaded).rest()

    def fails(batch, *given):
        raise RuntimeError("no memory left")

    monkeypatch.setattr(Batch, "choose", fails)
    assert "no memory left" in str(Asked(scheduler, loaded).next())
    monkeypatch.setattr(Batch, "choose", honest)
    assert Asked(scheduler, loaded).rest() == expected and "no memory left" in capfd.readouterr().err


def test_a_newcomer_has_its_first_token_within_three_tokens_of_the_others(started, loaded, gate):
    scheduler, log = started(answers_at_once=16), []
    others = [Asked(scheduler, loaded, room=40, seed=n) for n in range(15)]
    gate.release(3)
    for asked in others:
        asked.next()
    while gate._value:  # until all others wait for their next token
        time.sleep(0.01)
    new = Asked(scheduler, loaded, prompt=[5] * 20, room=2)
    for name, asked in [*(("other", asked) for asked in others), ("new", new)]:
        tell = asked.job.tell
        asked.job.tell = lambda event, name=name, tell=tell: (log.append(name), tell(event))
    gate.release(10_000)
    for asked in (*others, new):
        asked.rest()
    assert log.index("new") <= 3 * 15


def test_whoever_waits_when_the_server_stops_is_told(started, loaded, gate):
    scheduler = started(answers_at_once=1)
    running, waiting = Asked(scheduler, loaded), Asked(scheduler, loaded)
    running.next()
    stopping = threading.Thread(target=scheduler.stop)
    stopping.start()
    gate.release(10_000)
    counts = defaultdict(int)
    for asked in (running, waiting):
        while isinstance(event := asked.next(), tuple):
            pass
        counts[type(event)] += 1
    assert counts == {Unanswered: 2}
    stopping.join()


def test_deeper_than_the_memory_was_made_for_is_refused(started, loaded):
    with pytest.raises(ValueError, match="depth=9"):
        Asked(started(), loaded, depth=9)


def test_an_answer_ends_at_its_deadline_and_one_that_only_waited_has_none(started, loaded, gate):
    scheduler = started(answers_at_once=1)
    late = Asked(scheduler, loaded, room=60, seconds=0.3)
    late.next()
    waited = Asked(scheduler, loaded, seconds=0.2)
    last = Asked(scheduler, loaded, room=2)
    time.sleep(0.4)
    gate.release(10_000)
    assert len(late.rest()) == 2 and late.job.answering.reply.finish == "length"
    assert isinstance(event := waited.next(), Unanswered) and event.status == 503
    assert len(last.rest()) == 2


def test_other_work_has_its_turn_between_the_tokens(started, loaded, gate):
    scheduler, found = started(answers_at_once=1), SimpleQueue()
    running = Asked(scheduler, loaded, room=30)
    running.next()

    def fails():
        raise RuntimeError("no memory left")

    scheduler.submit(Work(lambda: threading.current_thread().name, found.put), "b")
    scheduler.submit(Work(fails, found.put), "b")
    gate.release(5)
    assert found.get(timeout=10) == "model"
    assert isinstance(fault := found.get(timeout=10), Unanswered) and fault.status == 500
    assert running.found.qsize() < 29, "although no row is free"
    gate.release(10_000)
    assert len(running.rest()) == 30


def test_rows_for_which_there_is_no_memory_are_refused_and_others_say_how_much_they_take(
    started, loaded, monkeypatch, capfd
):
    started(answers_at_once=3)
    assert f"3 rows of {loaded.window} positions" in capfd.readouterr().err

    def fails(*given, **options):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr("engine.serve.scheduler.memory_of", fails)
    with pytest.raises(ValueError, match="--answers-at-once 3"):
        started(answers_at_once=3)


def test_a_retnet_answers_many_at_once_too(loaded):
    vocab_size = loaded.model.config.vocab_size
    other = replace(loaded, model=make_model(vocab_size=vocab_size, seq_len=loaded.window).eval())
    scheduler = Scheduler(other, DecodeOptions(), 1, 3, 64)
    wanted = [{"prompt": [3 + n] * (1 + 2 * n), "room": 3 + n % 5, "seed": n} for n in range(8)]
    try:
        alone = [Asked(scheduler, other, **one).rest() for one in wanted]
        together = [asked.rest() for asked in [Asked(scheduler, other, **one) for one in wanted]]
    finally:
        scheduler.stop()
    assert together == alone and len({tuple(ids) for ids in alone}) == len(wanted)
