# `make smoke` and `make test` need nothing but Python 3.10+: they make .venv where no suitable environment is active.
.DEFAULT_GOAL := help
.PHONY: help setup smoke depth gpu test test-slow test-faults runs lint check finetune-teacher clean

# Test files that run at the same time, each on one thread.
JOBS ?= 2

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

setup:  ## make .venv with all that training and tests need
	@python=$$(scripts/setup_env.sh dev) && echo "ready: $$python"

smoke:  ## the main job, small: train, evaluate, answer (85 s of one core; 0.92 of held-out answers exact)
	@python=$$(scripts/setup_env.sh run) && PYTHON="$$python" scripts/pretrain_instruct_smoke.sh

depth:  ## one layer applied again beside four layers, on questions of known depth; ARGS="--form sentences"
	@python=$$(scripts/setup_env.sh dev) && OMP_NUM_THREADS=1 "$$python" -m lab.study depth $(ARGS)

gpu:  ## what this machine's GPU does: tests, speed, memory, a profile (10 minutes a call; call again to go on); ARGS="--only NAME"
	@python=$$(scripts/setup_env.sh dev) && "$$python" scripts/bench.py gpu $(ARGS)

test:  ## all tests but the slow ones; ARGS="-k name" goes to pytest
	@python=$$(scripts/setup_env.sh dev) && "$$python" -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

test-slow:  ## the tests that take minutes
	@python=$$(scripts/setup_env.sh dev) && "$$python" -m pytest -m slow $(ARGS)

test-faults:  ## kills, signals, damaged files, malformed input, full disks (4 to 7 minutes); ARGS="kill/ --place DIR"
	@python=$$(scripts/setup_env.sh dev) && "$$python" -m tests.faults.campaign $(ARGS)

runs:  ## list the runs in checkpoints/ with their best numbers; ARGS="DIR" lists those below DIR
	@python=$$(scripts/setup_env.sh run) && "$$python" scripts/list_runs.py $(ARGS)

lint:  ## ruff, mypy and the contracts of who may import whom
	@python=$$(scripts/setup_env.sh dev) && "$$python" -m ruff check . && "$$python" -m mypy && "$$(dirname "$$python")/lint-imports"

check: lint test  ## what a change must pass: lint and tests

finetune-teacher:  ## tune the teacher on its corpus; ARGS="--max-steps 100" go to the program
	@python=$$(scripts/setup_env.sh dev) && "$$python" scripts/finetune_teacher.py --config configs/teacher_ft.yaml --ram-disk $(ARGS)

clean:  ## remove caches and build leftovers; .venv, data and checkpoints stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
