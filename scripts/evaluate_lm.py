"""Score a checkpoint on tasks of lm-evaluation-harness; prints a table, with a column for each depth that is named.

python scripts/evaluate_lm.py --checkpoint checkpoints/SlimOrca-ACT/<run> --tasks arc_easy,hellaswag --limit 200
python scripts/evaluate_lm.py --checkpoint checkpoints/SlimOrca-ACT/<run> --tasks piqa --depth 1,2,4,8 --output piqa.json
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine.config.command_line import command_line
from lab.harness.options import HarnessOptions

if __name__ == "__main__":
    with command_line(HarnessOptions(), __doc__) as options:
        from lab.harness.run import evaluate, table  # imports torch, which --help should not wait for

        print(table(evaluate(options)))
