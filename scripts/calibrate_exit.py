"""Find how early tokens may leave the recursion without losing more than asked, and store it with the checkpoint.

python scripts/calibrate_exit.py --checkpoint checkpoints/SlimOrca-ACT/<run> --max-loss-increase 0.01
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine.config.command_line import command_line
from engine.generate.options import CalibrateOptions

if __name__ == "__main__":
    with command_line(CalibrateOptions(), __doc__) as options:
        from engine.generate.calibrate import calibrate_checkpoint  # imports torch, which --help should not wait for

        calibrate_checkpoint(options)
