"""All entry points under one name: `trm train recipe=sudoku_4x4` is `python pretrain.py recipe=sudoku_4x4`.

    pip install -e .      once, in the repository
    trm                   lists the sub-commands
    trm serve --help

Each is run as the program that it is, with this Python. Relative paths, such as checkpoints/, are of the directory in which
`trm` is called.
"""

import ast
import difflib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PROGRAMS = {
    "train": "pretrain.py",
    "instruct": "pretrain_instruct.py",
    "distill": "src/distillation/scripts/train.py",
    "chat": "generate.py",
    "generate": "generate_instruct.py",
    "serve": "serve.py",
    "evaluate": "inference_instruct.py",
    "lm-eval": "scripts/evaluate_lm.py",
    "calibrate": "scripts/calibrate_exit.py",
    "export": "scripts/export.py",
    "runs": "scripts/list_runs.py",
    "plot": "scripts/plot_run.py",
    "show-puzzles": "scripts/show_puzzles.py",
    "build-sudoku": "dataset/build_sudoku_dataset.py",
    "build-maze": "dataset/build_maze_dataset.py",
    "build-arc": "dataset/build_arc_dataset.py",
    "build-chat": "dataset/build_chat_dataset.py",
    "preprocess": "data/preprocess_to_parquet.py",
    "cache-teacher": "scripts/cache_teacher_logits.py",
    "tune-teacher": "scripts/finetune_teacher.py",
    "bench": "scripts/bench.py",
}


def main() -> None:
    name, *words = sys.argv[1:] or ["--help"]
    if not (ROOT / "scripts").is_dir():
        sys.exit(f"trm: {ROOT} is not the repository. Install it from there as it stands: pip install -e .")
    if name in ("-h", "--help", "help"):
        lines = [f"  {command:<14}{summary(ROOT / path)}" for command, path in PROGRAMS.items()]
        print("\n".join(["usage: trm COMMAND ...", "", *lines]))
    elif name not in PROGRAMS:
        near = difflib.get_close_matches(name, PROGRAMS)
        print(
            f"trm: no command {name!r}{f', did you mean {near[0]}?' if near else ''} `trm` lists them.", file=sys.stderr
        )
        sys.exit(2)
    else:
        os.execv(sys.executable, [sys.executable, str(ROOT / PROGRAMS[name]), *words])


def summary(program: Path) -> str:
    """The first line of its docstring."""
    return (ast.get_docstring(ast.parse(program.read_text(encoding="utf-8"))) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
