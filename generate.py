"""Talk to a chat model in the terminal, or get a single answer; the answer alone goes to standard output.

python generate.py --checkpoint "checkpoints/Chat-dataset-ACT-torch/trm_chat-*/step_1000" --prompt "What is recursion?"
python generate.py --checkpoint checkpoints/Chat-dataset-ACT-torch/trm_chat-<name> --interactive
"""

from engine.entry import user_errors
from engine.generate.options import ChatOptions, read_flags


def main() -> None:
    with user_errors():
        options = read_flags(ChatOptions(), __doc__)

        from engine.generate.terminal import chat  # imports torch, which --help should not wait for

        chat(options)


if __name__ == "__main__":
    main()
