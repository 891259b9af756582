"""Serve a checkpoint on this machine: a page to chat in, and OpenAI-compatible answers at /v1.

python serve.py --checkpoint checkpoints/Chat-dataset-ACT-torch/trm_chat-<name>

How to answer is for requests that do not ask otherwise.
"""

from engine.entry import user_errors
from engine.generate.options import ServeOptions, read_flags


def main() -> None:
    with user_errors():
        options = read_flags(ServeOptions(), __doc__)

        from engine.serve.app import serve_checkpoint  # imports torch, which --help should not wait for

        serve_checkpoint(options)


if __name__ == "__main__":
    main()
