"""Reading on with remembered keys and values gives what reading everything at once gives, in every architecture."""

import threading

import pytest
import torch

from models.kv_cache import KeyValueMemory, RecomputeMemory, cast_for_reading
from tests.engine.text_samples import ARCHS, LENGTH, make_batch, make_head, make_store

every_arch = pytest.mark.parametrize("arch", ARCHS)
WAYS = {
    "causal": {},
    "prefix": {"prefix_mask": True, "latent_init": "embedding", "supervise": "step"},
    "input at the start": {"injection": "start"},
    "learned positions": {"pos_encodings": "learned", "norm": "post"},
}
DOCUMENTS, SEED = 3, 5  # prompts of different lengths


def lasting(kind: str, model, rows: int, steps: int) -> KeyValueMemory | RecomputeMemory:
    if kind == "recompute":
        return RecomputeMemory(model, rows, LENGTH, steps)
    return KeyValueMemory(model, rows, LENGTH, steps)


def read_on(model, memory, documents, prefix: bool) -> dict[tuple[int, int], torch.Tensor]:
    """Logits at (document, place), after the prompt and after every token of the answer."""
    core = model.inner
    prompts = [int(is_trained.argmax()) for _, is_trained in documents]
    texts = [torch.tensor(ids.astype("int64")) for ids, _ in documents]
    ids = torch.nn.utils.rnn.pad_sequence(
        [text[:n] for text, n in zip(texts, prompts, strict=True)], batch_first=True, padding_value=7
    )
    is_prompt = (torch.arange(ids.shape[1]) < torch.tensor(prompts)[:, None]) if prefix else None
    with torch.inference_mode():
        *_, answer = memory.read(ids, prompts, is_prompt)
        said = {(row, n - 1): core.lm_head(answer[row, n - 1]) for row, n in enumerate(prompts)}
        rows, place = list(range(len(texts))), prompts
        while True:
            going_on = [at for at, row in enumerate(rows) if place[row] < len(texts[row]) - 1]
            if not going_on:
                return said
            rows = [rows[at] for at in going_on]
            memory.select_rows(going_on)
            *_, answer = memory.read(torch.stack([texts[row][place[row]] for row in rows])[:, None], [1] * len(rows))
            for at, row in enumerate(rows):
                said[row, place[row]] = core.lm_head(answer[at, 0])
                place[row] += 1


def at_once(model, steps: int) -> dict[tuple[int, int], torch.Tensor]:
    """The same logits from packed rows, as evaluation makes them."""
    core, batch = model.inner, make_batch(DOCUMENTS, packing=True, seed=SEED)
    with torch.no_grad():
        *_, (_, answers) = core.unroll(batch, steps)
        logits = core.lm_head(core.hidden(answers[-1]))
    number_of = {tuple(ids[:2].tolist()): number for number, (ids, _) in enumerate(stored())}
    found = {}
    for row in range(len(logits)):
        documents = batch["documents"][row]
        for number in range(int(documents.max()) + 1):
            places = (documents == number).nonzero()[:, 0].tolist()
            key = number_of[tuple(batch["inputs"][row, places[:2]].tolist())]
            found |= {(key, int(batch["positions"][row, place])): logits[row, place] for place in places}
    return found


def stored():
    store = make_store(DOCUMENTS, SEED)
    return [store.document(index) for index in range(len(store))]


@every_arch
@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("steps", [1, 2, 16])
def test_reading_on_equals_reading_everything_anew(arch, options, steps):
    model = make_head(arch, **options).model
    packed = at_once(model, steps)
    for first, documents in ((0, stored()), (1, stored()[1:2])):  # ragged prompts together, and one alone
        exact, oracle = (
            read_on(model, lasting(kind, model, len(documents), steps), documents, prefix="prefix_mask" in options)
            for kind in ("exact", "recompute")
        )
        assert exact.keys() == oracle.keys() and len(exact) >= len(documents)
        for (row, place), logits in exact.items():
            torch.testing.assert_close(logits, oracle[row, place], atol=1e-4, rtol=0)
            # Packed rows add up in another order, and sixteen steps with random weights magnify that.
            torch.testing.assert_close(logits, packed[row + first, place], atol=5e-4, rtol=0)


def test_every_supervision_step_keeps_keys_and_values_of_its_own():
    model = make_head("trm", H_cycles=2, L_cycles=1).model
    one, five = (lasting("exact", model, 2, steps) for steps in (1, 5))
    # 4 network calls of 1 block, keys and values of 32 float32 numbers each
    assert one.bytes_per_token == 4 * 2 * 32 * 4 and five.bytes_per_token == 5 * one.bytes_per_token


def test_a_token_that_left_shows_deeper_steps_what_it_had():
    model = make_head("trm").model
    memory = KeyValueMemory(model, 2, LENGTH, 3)
    with torch.inference_mode():
        list(memory.read(torch.tensor([[3, 4, 5], [6, 7, 0]]), [3, 2]))
        list(memory.read(torch.tensor([[8], [9]]), [1, 1]))
    second, third = torch.stack(memory.steps[1].keys), torch.stack(memory.steps[2].keys)
    memory.sync_exited(torch.tensor([3, 2]))  # the first row went all the way, the second left one step earlier
    synced = torch.stack(memory.steps[2].keys)
    assert torch.equal(synced[:, 1, :, 2], second[:, 1, :, 2])
    untouched = torch.ones(2, LENGTH, dtype=torch.bool)
    untouched[1, 2] = False
    assert torch.equal(synced.transpose(2, 3)[:, untouched], third.transpose(2, 3)[:, untouched])
    assert not torch.equal(synced[:, 1, :, 2], third[:, 1, :, 2])


def test_a_prompt_that_left_shows_deeper_steps_what_it_had_at_every_position():
    model = make_head("trm").model
    memory = KeyValueMemory(model, 2, LENGTH, 3)
    with torch.inference_mode():
        list(memory.read(torch.tensor([[3, 4, 5], [6, 7, 0]]), [3, 2]))
    first, third = torch.stack(memory.steps[0].values), torch.stack(memory.steps[2].values)
    memory.sync_exited(torch.tensor([3, 1]))
    for deeper in memory.steps[1:]:
        assert torch.equal(torch.stack(deeper.values)[:, 1, :, :2], first[:, 1, :, :2])
    assert torch.equal(torch.stack(memory.steps[2].values)[:, 0], third[:, 0]), (
        "the row that went all the way keeps its own"
    )


@pytest.mark.parametrize(
    ("options", "capacity", "told"),
    [
        ({"causal": False}, LENGTH, "causal"),
        ({}, LENGTH + 1, f"{LENGTH + 1} positions do not fit the window of {LENGTH}"),
        ({"puzzle_emb_ndim": 32}, LENGTH, "puzzle_emb_ndim=32"),
    ],
)
def test_models_that_cannot_go_on_are_refused(options, capacity, told):
    model = make_head("trm", **options).model
    for kind in (KeyValueMemory, RecomputeMemory):
        with pytest.raises(ValueError, match=told):
            kind(model, 1, capacity, 1)


def test_weights_cast_for_reading_give_the_same_answers():
    model = make_head("trm", forward_dtype="bfloat16").model
    before = read_on(model, KeyValueMemory(model, DOCUMENTS, LENGTH, 2), stored(), prefix=False)
    cast_for_reading(model)
    after = read_on(model, KeyValueMemory(model, DOCUMENTS, LENGTH, 2), stored(), prefix=False)
    assert model.inner.lm_head.weight.dtype == torch.bfloat16
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_cache_has_its_size_whatever_other_threads_do_with_the_model():
    model, stopped = make_head().model, threading.Event()
    alone = KeyValueMemory(model, 1, LENGTH, 2).bytes_per_token

    def use() -> None:
        while not stopped.is_set():
            KeyValueMemory(model, 1, LENGTH, 1)

    users = [threading.Thread(target=use) for _ in range(3)]
    for user in users:
        user.start()
    try:
        assert {KeyValueMemory(model, 1, LENGTH, 2).bytes_per_token for _ in range(60)} == {alone}
    finally:
        stopped.set()
        for user in users:
            user.join()
