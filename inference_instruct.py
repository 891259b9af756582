"""Evaluate an instruction checkpoint on a split of its corpus.

python inference_instruct.py --checkpoint checkpoints/SlimOrca-ACT/<run_name>/step_<N> --split test --save-outputs preds
"""

import argparse

from engine.entry import user_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--checkpoint", help="step folder, run folder or file; default: the run that --project-name and --run-name name"
    )
    add("--split", choices=("train", "test"), default="test")
    add("--save-outputs", nargs="*", default=[], metavar="NAME", help="tensors to save, such as preds inputs labels")
    add("--output-dir", help="default: inference_<split> next to the step folder")
    add("--tokenizer-path", help="default: the checkpoint's own tokenizer")
    add("--data-dir", help="default: where the checkpoint was trained")
    add("--subset-size", type=int, help="at most so many examples of the split")
    add("--seq-len", type=int)
    add("--batch-size", type=int, help="rows of a batch")
    add("--max-batches", type=int, help="stop after so many batches")
    add("--config-name", default="cfg_pretrain_instruct", help="config for checkpoints that carry none")
    add("--overrides", nargs="*", default=[], metavar="KEY=VALUE", help="changes to the checkpoint's config")
    add("--project-name", default="SlimOrca-ACT")
    add("--run-name")
    args = parser.parse_args()

    from engine.inference import InferenceOptions, infer  # late, so that --help needs no torch

    with user_errors():
        infer(InferenceOptions(**vars(args)))


if __name__ == "__main__":
    main()
