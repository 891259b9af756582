"""Other disguises of a puzzle: digits renamed, lines and bands exchanged, boards turned; its answer goes along."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dataset.common import PuzzleDatasetMetadata, dihedral_transform
from dataset.puzzles.samples import Game, game_of
from dataset.puzzles.sudoku import augmentation, shape_of, tokens_of


class Disguise(NamedTuple):
    """A symmetry of the game, in which a solution stays a solution."""

    cells: np.ndarray  # (S,) which cell each cell takes its token from
    tokens: np.ndarray  # (V,) the new name of each token

    def of(self, boards: np.ndarray) -> np.ndarray:
        """Boards (..., S) of tokens in this disguise."""
        disguised: np.ndarray = self.tokens[boards[..., self.cells]]
        return disguised


class Disguises:
    """Draws the disguises of a data set's puzzles; games without a symmetry that leaves puzzles independent are refused."""

    def __init__(self, metadata: PuzzleDatasetMetadata, where: str) -> None:
        self.num_cells, self.vocab_size = metadata.seq_len, metadata.vocab_size
        self.game: Game = game_of(metadata, where)
        if self.game.name == "arc":
            raise ValueError(
                f"{where} holds ARC, whose examples belong together and whose disguises have embeddings of their own. "
                "Leave the option disguises out; build the data set with --num-aug, and --compact where disk is short."
            )

    def draw(self, seed: Sequence[int]) -> Disguise:
        """The disguise that belongs to the seed."""
        rng = np.random.RandomState(np.random.SeedSequence(list(seed)).generate_state(4))
        if self.game.name == "sudoku":
            cells, digits = augmentation(shape_of(self.num_cells), rng)
            return Disguise(cells, np.append(0, tokens_of(digits)))  # token 0 is padding
        cells = dihedral_transform(np.arange(self.num_cells).reshape(self.game.side, -1), rng.randint(8)).ravel()
        return Disguise(cells, np.arange(self.vocab_size))
