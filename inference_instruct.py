"""Evaluate an instruction checkpoint on a split of its corpus.

python inference_instruct.py --checkpoint checkpoints/SlimOrca-ACT/<run_name>/step_<N> --split test --save-outputs preds
"""

from engine.config.command_line import command_line
from engine.generate.options import InferenceOptions

if __name__ == "__main__":
    with command_line(InferenceOptions(), __doc__) as options:
        from engine.inference import infer  # imports torch, which --help should not wait for

        infer(options)
