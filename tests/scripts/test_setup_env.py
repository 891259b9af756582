"""`make` on a machine of any kind: what scripts/setup_env.sh uses, makes, installs and says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ("scripts/setup_env.sh", "requirements.txt", "requirements-dev.txt", "pyproject.toml")

# A Python that has no packages, or all of them where a file `complete` lies beside it. `-m venv` makes a copy of it,
# `-m pip install` only notes that it was asked.
FAKE_PYTHON = """#!/usr/bin/env bash
real="{real}"
if [ "$1 $2" = "-m venv" ]; then
    echo "venv" >>"{log}"
    mkdir -p "$3/bin"
    [ -n "${{NO_ENSUREPIP:-}}" ] && exit 1
    cp "$0" "$3/bin/python"
elif [ "$1 $2 $3" = "-m pip install" ]; then
    echo "pip ${{@: -1}}" >>"{log}"
    echo "Requirement already satisfied: torch"
    exit "${{PIP_RESULT:-0}}"
elif [ "$1" = "-m" ]; then
    exit 0
elif [ -e "${{0%/*}}/complete" ]; then
    exec "$real" "$@"
else
    exec "$real" -S "$@"
fi
"""


class Machine:
    """A copy of the repository's root with nothing installed and one Python on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.log = folder / "repo", folder / "bin", folder / "log"
        for name in FILES:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        self.bin.mkdir(parents=True)
        for tool in ("bash", "env", "cat", "cksum", "cp", "dirname", "grep", "mkdir", "rm"):
            (self.bin / tool).symlink_to(shutil.which(tool) or tool)
        self.command("python3", FAKE_PYTHON.format(real=sys.executable, log=self.log))

    def command(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
        return path

    def set_up(self, kind: str = "dev", **environment: str) -> "subprocess.CompletedProcess[str]":
        script = [str(self.bin / "bash"), str(self.root / "scripts/setup_env.sh"), kind]
        return subprocess.run(
            script, env={"PATH": str(self.bin), **environment}, capture_output=True, text=True, check=False
        )

    def asked_for(self) -> list[str]:
        return self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_fresh_machine_gets_a_venv_once(machine: Machine) -> None:
    first = machine.set_up()
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip() == str(machine.root / ".venv/bin/python")
    assert "making .venv" in first.stderr and "installing requirements-dev.txt" in first.stderr
    assert "already satisfied" not in first.stderr
    assert machine.asked_for() == ["venv", "pip requirements-dev.txt"]

    second = machine.set_up()
    assert (second.stdout, second.stderr) == (first.stdout, "")
    assert machine.set_up("run").stderr == ""  # what tests need includes what training needs
    assert machine.asked_for() == ["venv", "pip requirements-dev.txt"]


def test_training_first_installs_the_test_tools_later(machine: Machine) -> None:
    machine.set_up("run")
    machine.set_up("dev")
    assert machine.asked_for() == ["venv", "pip requirements.txt", "pip requirements-dev.txt"]


def test_changed_requirements_are_installed_again(machine: Machine) -> None:
    machine.set_up()
    with (machine.root / "requirements.txt").open("a", encoding="utf-8") as file:
        file.write("einops>=0.8\n")
    machine.set_up()
    assert machine.asked_for() == ["venv", "pip requirements-dev.txt", "pip requirements-dev.txt"]


def test_broken_installation_is_taken_up_again(machine: Machine) -> None:
    broken = machine.set_up(PIP_RESULT="1")
    assert broken.returncode == 1 and broken.stdout == ""
    assert "did not finish" in broken.stderr
    assert machine.set_up().returncode == 0
    assert machine.asked_for() == ["venv", "pip requirements-dev.txt", "pip requirements-dev.txt"]


@pytest.fixture
def complete(machine: Machine, tmp_path: Path) -> Path:
    """An environment that has all that is needed."""
    folder = tmp_path / "mine"
    (folder / "bin").mkdir(parents=True)
    shutil.copy(machine.bin / "python3", folder / "bin/python")
    (folder / "bin/complete").touch()
    return folder


def test_suitable_active_environment_is_used_as_it_is(machine: Machine, complete: Path) -> None:
    done = machine.set_up(VIRTUAL_ENV=str(complete))
    assert done.stdout.strip() == f"{complete}/bin/python", done.stderr
    assert f"using {complete}/bin/python" in done.stderr
    assert machine.asked_for() == []


@pytest.mark.parametrize(("wanted", "lacked"), [("numpy>=1.26", "numpy>=99.1"), ("torch>=2.8,<3", "torch>=1.8,<2")])
def test_active_environment_out_of_range_is_not_used(
    machine: Machine, complete: Path, wanted: str, lacked: str
) -> None:
    project = machine.root / "pyproject.toml"
    project.write_text(project.read_text(encoding="utf-8").replace(wanted, lacked), encoding="utf-8")
    done = machine.set_up(PYTHON=f"{complete}/bin/python")
    assert done.stdout.strip() == str(machine.root / ".venv/bin/python")
    assert f"not using {complete}/bin/python: it lacks {lacked}\n" in done.stderr


def test_activated_venv_of_ours_follows_the_requirement_files(machine: Machine, complete: Path) -> None:
    complete.rename(machine.root / ".venv")
    done = machine.set_up("run", VIRTUAL_ENV=str(machine.root / ".venv"))
    assert done.returncode == 0, done.stderr
    assert machine.asked_for() == ["pip requirements.txt"]


def test_active_environment_that_lacks_something_is_left_alone(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "mine/bin").mkdir(parents=True)
    shutil.copy(machine.bin / "python3", tmp_path / "mine/bin/python")
    done = machine.set_up("run", VIRTUAL_ENV=str(tmp_path / "mine"))
    assert f"not using {tmp_path}/mine/bin/python: it lacks torch>=" in done.stderr
    assert done.stdout.strip() == str(machine.root / ".venv/bin/python")


def test_old_python_is_named_with_what_is_needed(machine: Machine) -> None:
    old = '#!/usr/bin/env bash\ncase "$2" in *exit*) exit 1 ;; *write*) printf 3.8.10 ;; esac\n'
    machine.command("python3", old)
    done = machine.set_up()
    assert done.returncode == 1 and done.stdout == ""
    assert "found python3 is Python 3.8.10; Python 3.10 or newer is needed" in done.stderr
    assert "PYTHON=" in done.stderr
    assert not (machine.root / ".venv").exists()


def test_newer_python_beside_an_old_one_is_found(machine: Machine) -> None:
    (machine.bin / "python3").rename(machine.bin / "python3.12")
    machine.command("python3", "#!/usr/bin/env bash\nexit 1\n")
    done = machine.set_up()
    assert done.returncode == 0, done.stderr
    assert f"making .venv with {machine.bin}/python3.12" in done.stderr


def test_python_without_venv_names_the_remedy_and_leaves_nothing(machine: Machine) -> None:
    done = machine.set_up(NO_ENSUREPIP="1")
    assert done.returncode == 1
    assert "apt install python3-venv" in done.stderr
    assert not (machine.root / ".venv").exists()


def test_venv_of_an_old_python_is_named_and_kept(machine: Machine) -> None:
    (machine.root / ".venv/bin").mkdir(parents=True)
    old = machine.command("old", '#!/usr/bin/env bash\ncase "$2" in *exit*) exit 1 ;; *write*) printf 3.9.2 ;; esac\n')
    shutil.copy(old, machine.root / ".venv/bin/python")
    done = machine.set_up()
    assert done.returncode == 1
    assert "found .venv with Python 3.9.2; 3.10 or newer is needed" in done.stderr
    assert (machine.root / ".venv/bin/python").exists()


def test_unknown_kind_lists_the_known_ones(machine: Machine) -> None:
    done = machine.set_up("all")
    assert done.returncode == 2
    assert "unknown kind 'all'; expected: run, dev" in done.stderr


def test_repository_may_lie_in_a_folder_with_spaces(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "my repos")
    done = machine.set_up("run")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{os.path.join(machine.root, '.venv/bin/python')}\n"
