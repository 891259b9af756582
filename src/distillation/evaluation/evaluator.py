"""The needle in a haystack as one of the judges of an evaluation."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dataset.common import Batch
from models.act import ActModel
from models.retnet.model import RetNet
from src.distillation.corpus.manifest import TokenizerFacts
from src.distillation.evaluation.haystack import VALUE_TOKENS, needle_scores


class NeedleEvaluator:
    """Asks the student itself; the held-out rows play no part."""

    required_outputs: set[str] = set()

    def __init__(
        self, model: ActModel, tokenizer: TokenizerFacts, lengths: Sequence[int], samples: int, seed: int
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        # A model with a table of positions must have room for the answer too.
        most = None if isinstance(model, RetNet) else model.config.seq_len - VALUE_TOKENS
        self.lengths = [length if most is None else min(length, most) for length in lengths]
        self.samples = samples
        self.seed = seed

    def begin_eval(self) -> None:
        """Nothing is gathered from one evaluation to the next."""

    def update_batch(self, batch: Batch, preds: dict[str, Tensor]) -> None:
        """The rows tell nothing of it."""

    def result(self, save_path: str | None, rank: int, world_size: int, group: Any) -> dict[str, float]:
        facts = self.tokenizer
        return needle_scores(
            self.model,
            vocab_size=facts.vocab_size,
            bos_id=facts.bos_id,
            special_ids={facts.eos_id, facts.pad_id},
            lengths=self.lengths,
            samples=self.samples,
            seed=self.seed,
        )
