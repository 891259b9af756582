"""Train variants of text recursion for equal compute on the sample corpus, and write docs/text_recursion.md.

python scripts/study_text.py --seeds 3 --tflop 20
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from lab.study.command import main

if __name__ == "__main__":
    main("conversations", __doc__)
