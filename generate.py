"""Talk to a chat model in the terminal, or get a single answer; the answer alone goes to standard output.

python generate.py --checkpoint "checkpoints/Chat-dataset-ACT-torch/trm_chat-*/step_1000" --prompt "What is recursion?"
python generate.py --checkpoint checkpoints/Chat-dataset-ACT-torch/trm_chat-<name> --interactive
"""

from engine.config.command_line import command_line
from engine.generate.options import ChatOptions

if __name__ == "__main__":
    with command_line(ChatOptions(), __doc__) as options:
        from engine.generate.terminal import chat  # imports torch, which --help should not wait for

        chat(options)
