"""Serve a checkpoint on this machine: of text a page to chat in, and OpenAI-compatible answers at /v1; of puzzles a page
that shows how it solves them.

python serve.py --checkpoint checkpoints/Chat-dataset-ACT-torch/trm_chat-<name>
python serve.py --checkpoint checkpoints/sudoku-6x6/<name>

How to answer is for requests that do not ask otherwise.
"""

from engine.config.command_line import command_line
from engine.generate.options import ServeOptions

if __name__ == "__main__":
    with command_line(ServeOptions(), __doc__) as options:
        from engine.serve.start import serve_checkpoint  # imports torch, which --help should not wait for

        serve_checkpoint(options)
