"""What is said of a puzzle that was followed through the supervision steps."""

import numpy as np

from dataset.puzzles.samples import Sample
from engine.tasks.traces import Trace


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
