"""Answer a message, or many, with a checkpoint of instruction training; the reply alone goes to standard output.

python generate_instruct.py --checkpoint checkpoints/SlimOrca-ACT/<run> --message "Explain recursion in simple terms."
python generate_instruct.py --checkpoint checkpoints/SlimOrca-ACT/<run> --message-file questions.txt --json
"""

from engine.config.command_line import command_line
from engine.generate.options import InstructOptions

if __name__ == "__main__":
    with command_line(InstructOptions(), __doc__) as options:
        from engine.generate.terminal import answer_messages  # imports torch, which --help should not wait for

        answer_messages(options)
