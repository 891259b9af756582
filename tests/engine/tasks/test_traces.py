"""What is said of a puzzle that was followed through the supervision steps."""

import numpy as np
import pytest
import torch

from dataset.puzzles.samples import Sample
from engine.tasks.puzzles import PuzzleTask
from engine.tasks.traces import Trace, batch_of, trace_samples
from models.losses.puzzles import ACTLossHead
from tests.models.small import LENGTH, VOCAB, make
from tests.tiny import CPU


def trace(answers: list[list[int]], labels: list[int]) -> Trace:
    sample = Sample(number=7, inputs=np.ones(len(labels), dtype=np.int32), labels=np.array(labels), identifier=0)
    return Trace(sample, np.array(answers), np.zeros(len(answers)))


def test_only_cells_with_an_answer_can_be_wrong():
    followed = trace([[5, 3, 9], [2, 3, 1]], labels=[2, 3, -100])
    assert followed.wrong.tolist() == [[True, False, False], [False, False, False]]
    assert followed.num_wrong == [1, 0]


def test_summary_says_since_when_it_is_solved():
    labels = [2, 3]
    assert trace([[2, 3], [2, 3]], labels).summary() == "puzzle 7: solved from step 1 on; wrong cells by step: 0 0"
    relapsed = trace([[2, 3], [9, 9], [2, 3]], labels)
    assert relapsed.summary() == "puzzle 7: solved from step 3 on; wrong cells by step: 0 2 0"
    assert trace([[2, 3], [2, 9]], labels).summary() == "puzzle 7: 1 wrong; wrong cells by step: 0 1"


@pytest.mark.parametrize("chains", [1, 3])
def test_the_last_answer_is_that_of_an_evaluation(chains):
    rng = np.random.default_rng(0)
    samples = [Sample(number, *rng.integers(0, VOCAB, (2, LENGTH)), identifier=0) for number in range(3)]
    head = ACTLossHead(make("trm", chains=chains))
    traces = trace_samples(head, samples, CPU)
    assert len({trace.answers.tobytes() for trace in traces}) == 3 and traces[0].answers.shape == (3, LENGTH)
    with torch.no_grad():
        _, outputs = PuzzleTask(head, CPU, seed=0).eval_batch(batch_of(samples), ["preds"])
    assert outputs["preds"].tolist() == [trace.answers[-1].tolist() for trace in traces]
