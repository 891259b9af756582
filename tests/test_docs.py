"""Every command that README and docs tell a user to type is typed here, on a small scale."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from dataset.text.sample_corpus import make_sample_records, sample_tokenizer
from tests.tiny import ROOT, Ended, end, first_line, start_python

OWN_TESTS = ("chat.md", "distillation.md", "serving.md")  # whose commands other files type
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name not in OWN_TESTS)]
TINY_ARCH = ["arch.hidden_size=32", "arch.num_heads=2", "arch.L_layers=1", "arch.H_cycles=1", "arch.L_cycles=1"]
TINY_PUZZLE = [*TINY_ARCH, "arch.halt_max_steps=2", "device=cpu", "compile=false"]
TINY_PUZZLE += ["epochs=1", "eval_interval=1", "global_batch_size=4", "max_steps=2"]
TINY_TEXT = [word for word in TINY_PUZZLE if not word.startswith("eval_interval")] + [
    "eval_interval=null",
    "dataset.seq_len=128",
]
# Their doors run on small files in the tests of the builders.
NEEDS_OTHER_DATA = ("build_arc", "sudoku-extreme", "build_maze_dataset.py", "hellaswag")


def documented_commands(pages: list[Path] | None = None) -> list[str]:
    """Commands of all fenced bash blocks; continued lines joined, comments cut."""
    found = []
    for page in pages or PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                command = re.sub(r"\s+", " ", re.sub(r"(^|\s)#.*", "", line)).strip()
                if command and command not in found:
                    found.append(command)
    return found


SEEN: set[str] = set()


def is_first(words: list[str]) -> bool:
    """Whether this is the program's first run here, which is a new process: a fork has torch and other libraries already."""
    program = " ".join(words[1:3] if words[1] == "-m" else words[1:2])
    is_new = program not in SEEN
    SEEN.add(program)
    return is_new


@contextmanager
def serving(words: list[str], place: Path, **environment: str) -> Iterator[str]:
    """The address that this command prints; it would never end by itself."""
    server = start_python(words[1:], place, is_new=is_first(words), **environment)
    try:
        yield first_line(server).strip()
    finally:
        server.send_signal(signal.SIGINT)
        ended = end(server)
    assert ended.code == 130


def small(command: str, run_name: str) -> list[str]:
    """The same command, tiny; an instruction run that is not named gets this name."""
    command = command.replace("$PWD/", "").replace("<run_name>", "tiny").replace("step_<N>", "latest")
    words = shlex.split(command)
    if "--generate" in words:
        words[words.index("--count") + 1] = "24"
        words += ["--test-count", "8", "--overwrite"]
    if "pretrain.py" in command and "--help" not in command:
        words += TINY_PUZZLE if "eval_only" not in command else ["device=cpu", *TINY_PUZZLE[:6]]
        if "recipe=sudoku_6x6" in command:  # the run that is drawn afterwards
            words.append("run_name=tiny")
    if "pretrain_instruct" in command:
        kept = [w for w in words if not w.startswith(("global_batch_size=", "epochs="))]
        words = [*kept, *TINY_TEXT]
        if not any(w.startswith("run_name=") for w in words):
            words.append(f"run_name={run_name}")
        if "recipe=sample_corpus" in command:
            words += ["dataset.sample_size=200", "arch.depth_curriculum=[]"]
            if "checkpoint_path=" not in command:
                words.append(f"checkpoint_path=checkpoints/{len(words)}")
    if "study_text.py" in command:
        words = [*words[:2], "--seeds", "1", "--tflop", "0.001", "--variants", "TRM H1 L2", "--page", "page.md"]
        words += ["--overrides", *[w for w in TINY_TEXT if w.startswith(("arch.hid", "arch.num"))]]
        words += ["dataset.sample_size=200", "dataset.data_dir=data/sample", "global_batch_size=4"]
    if "lab.study composition" in command:
        words = [
            *words[:4],
            "--seeds",
            "1",
            "--tflop",
            "0.0002",
            "0.0004",
            "--variants",
            "looped 1x4",
            "--page",
            "page.md",
        ]
        words += ["--overrides", "arch.hidden_size=32", "arch.num_heads=2", "dataset.composition.people=8"]
        words += ["dataset.composition.questions=60", "dataset.composition.held_out=10"]
    if "lab.study puzzles" in command:
        words = [*words[:4], "--seeds", "1", "--tflop", "1e-4", "--variants", "TRM", "--page", "page.md"]
        words += [
            "--data",
            "data/sudoku-4x4",
            "--overrides",
            *TINY_ARCH,
            "arch.halt_max_steps=2",
            "global_batch_size=4",
        ]
    if "generate_instruct.py" in command:
        words += ["--system-message", "", "--truncate", "--max-output-tokens", "3"]
        words[words.index("--message") + 1] = "Hi"
    if "calibrate_exit.py" in command:
        words += ["--conversations", "4", "--allow-other-split"]
        words += ["--overrides", "dataset.test_ratio=0.3", "arch.halt_max_steps=4"]
    if "probe_leaks.py" in command:
        words += [*(TINY_ARCH[:3] if "arch=" in command else []), "device=cpu", "--train-steps", "1"]
    if "bench.py generate" in command:
        words += ["arch.hidden_size=32", "arch.num_heads=2", "arch.H_cycles=1", "arch.L_cycles=1", "device=cpu"]
        words += ["--prompt", "8", "--new-tokens", "4", "--batch", "1", "--vocab-size", "300"]
    if "bench.py train" in command:
        words += ["--steps", "1", "--rows", "2", "arch.hidden_size=32", "arch.num_heads=2", "arch.H_cycles=1"]
        words += ["arch.L_cycles=1", "device=cpu", "compile=false", "--vocab-size", "300"]
    return words


def typed(words: list[str], place: Path, stdin: str = "", timeout: float = 280, **environment: str) -> Ended:
    """What comes of a command that is typed in this directory."""
    if words[0] == "torchrun":
        words = ["python", "-m", "torch.distributed.run", *words[1:]]
    if words[0] == "python":
        return end(start_python(words[1:], place, stdin, is_first(words), **environment), timeout)
    environment = {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable} | environment
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        words, cwd=place, env=os.environ | environment, input=stdin, capture_output=True, text=True, timeout=timeout
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's files, a small corpus, and the tokenizer at the documented place."""
    place = tmp_path_factory.mktemp("clone")
    for entry in ROOT.iterdir():
        if entry.name not in ("data", "checkpoints", "tokenizers", ".git", ".venv", "wandb"):
            (place / entry.name).symlink_to(entry)
    records = make_sample_records(200, 0, 0.2)
    corpus = place / "data" / "slimorca_full"
    corpus.mkdir(parents=True)
    lines = [json.dumps(record) for split in ("train", "test") for record in records[split]]
    (corpus / "SlimOrca.jsonl").write_text("\n".join(lines) + "\n")
    for name in ("slimorca", "openorca", "my_records"):
        shutil.copytree(corpus, place / "data" / name)
    tokenizer = place / "tokenizers" / "llama-32k" / "tokenizer.model"
    tokenizer.parent.mkdir(parents=True)
    shutil.copy(sample_tokenizer(records["train"], place / "data" / "sample"), tokenizer)
    return place


@pytest.mark.timeout(900)
def test_every_documented_command_works(workplace: Path) -> None:
    env = {"SLIMORCA_TQDM": "0", "HF_HOME": str(workplace / "hf")}
    ran = 0
    for command in documented_commands():
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            env[name] = value.strip('"').replace("$PWD", str(workplace))
            continue
        if command.startswith(("make ", "pip ", "git ", "hf ", "curl", "torchrun --nproc-per-node 8")):
            continue  # the suite itself, installation, and the network
        if command == "scripts/pretrain_instruct_smoke.sh":
            continue  # test_smoke_script.py
        if any(word in command for word in NEEDS_OTHER_DATA):
            continue
        variables = re.match(r"((?:[A-Z_]+=\S+ )*)(.*)", command)
        assert variables is not None
        extra = dict(word.split("=", 1) for word in variables[1].split())
        # The first instruction run is the one that later commands evaluate and resume.
        is_taken = (workplace / "checkpoints" / "SlimOrca-ACT" / "tiny").exists()
        words = small(variables[2], run_name=f"tiny-{ran}" if is_taken else "tiny")
        if "serve.py" in words:
            with serving([*words, "--port", "0", "--device", "cpu"], workplace, **(env | extra)) as address:
                with urlopen(address, timeout=60) as page:
                    assert page.status == 200, words
        else:
            done = typed(words, workplace, **(env | extra))
            assert done.code == 0, f"{command}\n{shlex.join(words)}\n{done.err[-3000:]}"
        ran += 1
    assert ran >= 10


def test_every_documented_program_is_here_or_installed() -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in documented_commands([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]):
        program = re.sub(r"^([A-Z_]+=\S+ )*", "", command).split()[0]
        is_here = any((folder / program).is_file() for folder in (ROOT, ROOT / "examples"))
        assert program in ("export", "cd") or is_here or shutil.which(program, path=path), command


def test_make_targets_that_are_documented_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"^make ([a-z-]+)", page.read_text(), flags=re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"{page.name}: make {target}"


def test_figures_of_make_smoke_are_the_same_everywhere() -> None:
    readme, makefile, log = ((ROOT / name).read_text() for name in ("README.md", "Makefile", "docs/log.md"))
    told = re.search(r"^smoke:.*\((\d+) s of one core; (\d\.\d+) of held-out", makefile, flags=re.MULTILINE)
    assert told
    seconds, accuracy = told.groups()
    assert re.search(rf"^make smoke .* {seconds} s of one CPU core$", readme, flags=re.MULTILINE)
    assert re.search(
        rf"^\| `make smoke`.* {accuracy} of held-out answers exact after {seconds} s of one core",
        readme,
        flags=re.MULTILINE,
    )
    (section,) = [part for part in log.split("\n## ") if part.startswith("2026-11-27: `make smoke`")]
    assert f"**{seconds} s**" in section and f"**{accuracy}**" in section
