"""Carry out a study: train what its results do not hold yet, and write its section of docs/text_recursion.md or, of puzzles,
of docs/puzzle_recursion.md.

python -m lab.study depth
python -m lab.study composition
python -m lab.study puzzles
python -m lab.study conversations --seeds 3 --tflop 20
"""

from lab.study.command import main

if __name__ == "__main__":
    main(description=__doc__)
