"""Write a checkpoint as a folder that other programs load: transformers, or our own classes through the Hub.

python scripts/export.py --checkpoint checkpoints/SlimOrca-ACT/<run> --output exported/<run>
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from engine.config.command_line import command_line
from engine.export.options import ExportOptions

if __name__ == "__main__":
    with command_line(ExportOptions(), __doc__) as options:
        from engine.build.export import export  # imports torch, which --help should not wait for
        from engine.entry import show

        show(export(options))
