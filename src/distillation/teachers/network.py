"""A server of prompt log-probabilities, such as vLLM's, as the teacher: every document is sent by itself.

For each token of a prompt the server returns the distribution that predicted it: at token t + 1 what a signal holds at
position t. For the first token it returns nothing.
"""

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from dataset.common import Batch
from models.losses.distill import NO_MASS, UNUSED
from src.distillation.config import TeacherOptions
from src.distillation.targets.signal import TeacherFacts, TeacherSignal, predicted_places
from src.distillation.targets.topk import blank_signal
from src.distillation.teachers.completion_client import CompletionClient, ServerError

BYTES_PER_ENTRY = 512  # that an answer may have for each id it names
BYTES_BESIDE = 1 << 20  # and besides


class Document(NamedTuple):
    row: int
    start: int
    ids: list[int]


class NetworkTeacher:
    """Names the k likeliest ids. Where the likeliest ones include ids from vocab_size on, those are left out."""

    def __init__(self, options: TeacherOptions, vocab_size: int, api_key: str | None = None) -> None:
        self._client = CompletionClient(
            options.teacher_url, api_key, options.teacher_timeout, options.teacher_max_retries
        )
        self._model = self._served(options.teacher_model)
        fingerprint = hashlib.sha256(f"{self._client.url} {self._model}".encode()).hexdigest()
        self.facts = TeacherFacts(vocab_size, "topk", options.teacher_topk, (1.0,), fingerprint)
        self._pool = ThreadPoolExecutor(options.teacher_concurrency, thread_name_prefix="teacher")

    def signal(self, batch: Batch) -> TeacherSignal:
        signal = blank_signal(self.facts, predicted_places(batch["documents"].cpu()))
        assert signal.ids is not None
        documents = documents_of(batch)
        for document, (ids, logprobs) in zip(documents, self._pool.map(self._ask, documents), strict=True):
            part = slice(document.start, document.start + len(ids))
            signal.ids[document.row, part] = torch.tensor(ids, dtype=torch.int32)
            signal.logprobs[document.row, part] = torch.tensor(logprobs)
        return signal.to(batch["inputs"].device)

    def close(self) -> None:
        self._client.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, document: Document) -> tuple[list[list[int]], list[list[float]]]:
        """Ids and log-probabilities at every position of a document but the last."""
        k = self.facts.k
        question = {
            "model": self._model,
            "prompt": document.ids,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": k,
        }
        limit = BYTES_BESIDE + len(document.ids) * (k + 1) * BYTES_PER_ENTRY
        try:
            answer = self._client.ask("/v1/completions", limit, question)
        except ServerError as error:
            if error.code == 400 and "logprobs" in error.said:
                raise ValueError(
                    f"The teacher's server does not give {k} log-probabilities: {error.said} Start it with "
                    f"--max-logprobs {k}, or lower teacher_topk."
                ) from error
            raise
        entries = self._entries(answer, len(document.ids))
        places = [self._likeliest(entry) for entry in entries[1:]]
        return [ids for ids, _ in places], [logprobs for _, logprobs in places]

    def _entries(self, answer: Any, length: int) -> list[Any]:
        try:
            entries = answer["choices"][0]["prompt_logprobs"]
        except (KeyError, IndexError, TypeError) as error:
            raise self._malformed(f"it holds no choices[0].prompt_logprobs: {str(answer)[:200]}") from error
        if not isinstance(entries, list) or len(entries) != length or entries[0] is not None:
            found = f"a list of {len(entries)}" if isinstance(entries, list) else type(entries).__name__
            raise self._malformed(
                f"prompt_logprobs is {found}, expected one entry for each of the {length} tokens, the first of them null"
            )
        return entries

    def _likeliest(self, entry: Any) -> tuple[list[int], list[float]]:
        """The k likeliest; a server also names the token that came next where it is not one of them."""
        k = self.facts.k
        try:
            known = [(-_number(value["logprob"]), int(token)) for token, value in entry.items()]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise self._malformed(f"an entry of prompt_logprobs is {str(entry)[:200]}") from error
        if len(known) < k:
            raise self._malformed(f"an entry names {len(known)} ids, {k} were asked for")
        best = [(token, -value) for value, token in sorted(known)[:k]]
        best = [(token, logprob) for token, logprob in best if token < self.facts.vocab_size and logprob > NO_MASS]
        unused = k - len(best)
        return [token for token, _ in best] + [UNUSED] * unused, [value for _, value in best] + [NO_MASS] * unused

    def _served(self, wanted: str | None) -> str:
        """The model to ask, which must be one that the server says it has."""
        answer = self._client.ask("/v1/models", BYTES_BESIDE)
        try:
            names = [str(model["id"]) for model in answer["data"]]
        except (KeyError, TypeError) as error:
            raise self._malformed(f"/v1/models is {str(answer)[:200]}") from error
        if wanted is None and len(names) == 1:
            return names[0]
        if wanted is None or wanted not in names:
            asked = "no model was chosen" if wanted is None else f"there is no model {wanted}"
            raise ValueError(
                f"At the teacher's server {self._client.url} {asked}: it has {', '.join(names) or 'none'}. Set "
                "teacher_model (--teacher-model) to one of them."
            )
        return wanted

    def _malformed(self, what: str) -> ValueError:
        return ValueError(
            f"The answer of the teacher's server {self._client.url} is not understood: {what}. What is needed is a server "
            "that answers /v1/completions with prompt_logprobs, such as vLLM's."
        )


def documents_of(batch: Batch) -> list[Document]:
    """Those that predict something, of two tokens or more."""
    found = []
    for row, (numbers, ids) in enumerate(zip(batch["documents"].cpu(), batch["inputs"].tolist(), strict=True)):
        values, lengths = torch.unique_consecutive(numbers, return_counts=True)
        start = 0
        for value, length in zip(values.tolist(), lengths.tolist(), strict=True):
            if value >= 0 and length > 1:
                found.append(Document(row, start, ids[start : start + length]))
            start += length
    return found


def _number(value: Any) -> float:
    """A log-probability; servers write minus infinity in several ways."""
    if value is None:
        return -math.inf
    number = float(value)
    if math.isnan(number) or number > 1e-3:
        raise ValueError(f"{value} is not a log-probability")
    return min(number, 0.0)
