"""Keep a teacher's answers about a packed corpus, for training with teacher_mode=cached.

    python scripts/cache_teacher_logits.py --data-path data/distillation_preprocessed --output-dir data/teacher_cache \\
        --teacher-model meta-llama/Llama-3.2-1B-Instruct --topk 64
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run by path, Python sees only this folder

from src.distillation.run.cache_corpus import main

if __name__ == "__main__":
    main()
