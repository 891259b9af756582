import numpy as np
import torch

from lab.ngram import Bigram, SimilarQuestions, exchanges_of, pairs_of


def counted(pairs, vocab_size=5):
    model = Bigram(vocab_size)
    before, token = np.array(pairs).T
    model.add(before, token)
    model.count()
    return model


def test_the_probabilities_after_every_token_sum_to_one():
    model = counted([(0, 1), (0, 1), (0, 2), (1, 3), (3, 3)])
    for before in range(5):  # 2 and 4 were never seen in front
        losses = model.losses(np.full(5, before), np.arange(5))
        np.testing.assert_allclose(np.exp(-losses).sum(), 1.0, rtol=1e-12)


def test_seen_pairs_are_likelier_than_unseen_ones():
    model = counted([(0, 1)] * 8 + [(2, 3)] * 8)
    assert model.losses(np.array([0]), np.array([1]))[0] < model.losses(np.array([0]), np.array([3]))[0]


def test_pairs_stay_inside_documents():
    batch = {
        "inputs": torch.tensor([[1, 2, 3, 4, 0]]),
        "labels": torch.tensor([[-100, 9, -100, 8, -100]]),
        "documents": torch.tensor([[0, 0, 1, 1, -1]]),
    }
    before, token = pairs_of(batch, only_trained=True)
    assert list(zip(before.tolist(), token.tolist(), strict=True)) == [(2, 9), (4, 8)]
    before, token = pairs_of(batch, only_trained=False)
    assert sorted(zip(before.tolist(), token.tolist(), strict=True)) == [(1, 2), (2, 9), (3, 4), (4, 8)]


def test_the_most_similar_question_gives_the_answer():
    known = [(np.array([1, 2, 3]), (10,)), (np.array([4, 5, 6, 7, 8, 9]), (20, 21)), (np.array([4, 5]), (30,))]
    similar = SimilarQuestions(known)
    assert similar.answer(np.array([3, 2, 9])) == (10,)
    assert similar.answer(np.array([4, 5, 6, 7, 1])) == (20, 21)
    assert similar.answer(np.array([5, 4, 4])) == (30,), "how often a token stands there does not count"


def test_questions_and_answers_are_those_of_the_documents():
    batch = {
        "inputs": torch.tensor([[1, 2, 3, 4, 5, 0]]),
        "labels": torch.tensor([[-100, 3, -100, 5, 6, -100]]),
        "documents": torch.tensor([[0, 0, 1, 1, 1, -1]]),
    }
    found = [(question.tolist(), answer) for question, answer in exchanges_of(batch)]
    assert found == [([1], (3,)), ([3], (5, 6))]
