"""Two machines, as two torchruns on loopback with scratch folders of their own: the chat guide's flags, and static ones."""

import os
import subprocess
from pathlib import Path

import pytest

from dataset.files.scratch import PREFIX
from engine.config.flags import FlagParser
from src.distillation.corpus.options import PreprocessOptions
from tests.ranks import free_port
from tests.test_pretrain_instruct import assert_same_course
from tests.text_runs import text_flags, train_text, write_corpus
from tests.tiny import ROOT, end, start

SBATCH = sorted((ROOT / "scripts" / "slurm").glob("*.sbatch"))
GUIDE = ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:{port}"]
STATIC = ["--master-addr=localhost", "--master-port={port}"]


@pytest.mark.slow
@pytest.mark.parametrize("meeting", [GUIDE, STATIC])
def test_two_machines_of_two_ranks_make_the_run_of_one_process(tmp_path: Path, meeting: list[str]) -> None:
    data, one, four, port = write_corpus(tmp_path / "data"), tmp_path / "one", tmp_path / "four", free_port()
    assert train_text(text_flags(data, one, lr=1e-3)).code == 0
    machines = []
    for node in range(2):
        scratch = tmp_path / f"scratch{node}"
        scratch.mkdir()
        flags = [
            "--nproc-per-node=2",
            *(word.format(port=port) for word in meeting),
            "--nnodes=2",
            f"--node_rank={node}",
        ]
        words = ["-m", "torch.distributed.run", *flags]
        machines.append(
            start(text_flags(data, four, lr=1e-3), tmp_path, *words, door="pretrain_instruct.py", TMPDIR=str(scratch))
        )
    ended = [end(machine, timeout=300) for machine in machines]
    assert [each.code for each in ended] == [0, 0], ended[0].err + ended[1].err
    assert_same_course(four, one)
    leaders = sorted(number for each in ended for number in (0, 2) if f"rank {number} is tokenizing" in each.err)
    assert leaders == [0, 2], "each machine tokenizes for itself"
    assert not list(tmp_path.glob(f"scratch?/{PREFIX}*"))


@pytest.mark.parametrize("file", SBATCH, ids=lambda file: file.stem)
def test_batch_files_are_plain_bash_that_stops_at_an_error(file: Path) -> None:
    assert subprocess.run(["bash", "-n", file], check=False).returncode == 0
    lines = file.read_text().splitlines()
    assert lines[0] == "#!/bin/bash" and "set -euo pipefail" in lines
    first_command = lines.index("set -euo pipefail")
    assert not [line for line in lines[first_command:] if line.startswith("#SBATCH")], (
        "sbatch reads none after a command"
    )


def told(file: str, words: list[str], folder: Path, **environment: str) -> str:
    """What the programs that a batch file starts are given; each of them prints it instead."""
    programs = {"srun": 'echo "$TORCH_DISABLE_SHARE_RDZV_TCP_STORE $@"', "scontrol": "echo first; seq 100000"}
    for name, body in (programs | {"python": 'echo "$@"'}).items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    environment |= {"PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "scripts" / "slurm" / file), *words]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True).stdout


def test_a_training_job_starts_torchrun_once_a_machine_and_resumes(tmp_path: Path) -> None:
    job = {"SLURM_JOB_NODELIST": "x[1-2]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "20007"}
    found = told("train.sbatch", ["pretrain.py", "run_name=my run"], tmp_path, **job)
    assert found.startswith("1 ") and found.rstrip().endswith("pretrain.py run_name=my run resume=auto")
    assert "torchrun --nnodes=2 --nproc-per-node=8" in found and "--rdzv_endpoint=first:20007" in found


def test_a_task_of_a_preprocessing_array_makes_its_part(tmp_path: Path) -> None:
    task = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_CPUS_PER_TASK": "5"}
    program, *words = told("preprocess.sbatch", ["--input", "a", "--output", "b"], tmp_path, **task).split()
    assert (ROOT / program).is_file()
    options, _ = FlagParser(PreprocessOptions, "").read(words)
    assert (options.part, options.num_workers, options.skip_existing, str(options.output)) == ("3/8", 5, True, "b")
