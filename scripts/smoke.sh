#!/usr/bin/env bash
# The smallest real job, on any machine: make 4x4 Sudoku puzzles, train on them, evaluate on the held-out ones.
#
#   make smoke                      sets up what is missing, then runs this
#   scripts/smoke.sh epochs=50      further arguments override the recipe
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python}
data_dir=data/sudoku-4x4

if [ -f "$data_dir/test/dataset.json" ]; then
    echo "[smoke] using the puzzles in $data_dir" >&2
else
    echo "[smoke] making puzzles in $data_dir" >&2
    "$python" -m dataset.build_sudoku_dataset --generate 4x4 --count 1000 --seed 0 --output-dir "$data_dir"
fi

echo "[smoke] training" >&2
"$python" pretrain.py recipe=sudoku_4x4 "data_paths=[$data_dir]" epochs=20 eval_interval=20 "$@"
