"""Compare a checkpoint on held-out data with what needs no learning, on the very tokens that it was trained on: its loss
with that of bigrams, its exact answers with those to the most similar questions.

python scripts/bigram_baseline.py --checkpoint checkpoints/SlimOrca-ACT/<run_name>
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine.config.command_line import command_line
from engine.generate.options import BigramOptions

if __name__ == "__main__":
    with command_line(BigramOptions(), __doc__) as options:
        from lab.ngram import compare_with_bigram  # imports torch, which --help should not wait for

        compare_with_bigram(options)
