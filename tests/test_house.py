"""The house keeps its arrows, declares what it imports, and the checker that says so can fail."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house import ROOMS, read_imports, read_sources, violations

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
# Where the package that is imported is not called what is installed.
IMPORT_NAMES = {"fla-core": "fla", "hydra-core": "hydra"}
# Cut in two, so that this file does not find itself.
HOSTS = (
    *("py" + r"pi\.org", "python" + "hosted", "ana" + r"conda\.org"),
    *(r"download\.py" + r"torch\.org", r"registry\.n" + "pmjs", "index-" + "url"),
)
MACHINE_PATH = r"(?<![\w.)}~$-])/(?:work|root|home|Users)/\w"


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(lines: list[str]) -> dict[str, Requirement]:
    wanted = [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]
    return {canonicalize_name(requirement.name): requirement for requirement in wanted}


def listed(name: str) -> dict[str, Requirement]:
    return requirements((ROOT / name).read_text(encoding="utf-8").splitlines())


def import_name(package: str) -> str:
    return IMPORT_NAMES.get(package, package.replace("-", "_"))


def third_party_imports() -> list[tuple[str, str, str]]:
    """(package, where, the import in words) for all that is neither ours nor Python's own."""
    found = [(i.target.split(".")[0], i.where, str(i)) for i in read_imports(read_sources(ROOT))]
    return [item for item in found if item[0] not in sys.stdlib_module_names and item[0] not in ROOMS]


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for path, source in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(source, encoding="utf-8")
    return root


# --- this house ---


def test_no_arrow_is_broken() -> None:
    assert violations(ROOT) == []


def test_contracts_between_the_packages_are_kept() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("file", "extra"), [("requirements.txt", None), ("requirements-dev.txt", "dev")])
def test_pyproject_and_requirement_files_name_the_same_packages(file: str, extra: str | None) -> None:
    ours = project()
    ranges = requirements(ours["optional-dependencies"][extra] if extra else ours["dependencies"])
    files = listed(file)
    assert sorted(files) == sorted(ranges)
    for name, requirement in files.items():
        versions = [specifier.version for specifier in requirement.specifier]
        assert versions, f"{name} in {file} has no floor"
        assert all(ranges[name].specifier.contains(version) for version in versions), name


def test_uv_takes_the_torch_of_the_requirement_file() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    constraints = requirements(settings["tool"]["uv"]["constraint-dependencies"])
    assert constraints["torch"].specifier == listed("requirements.txt")["torch"].specifier


def test_every_requirement_is_imported() -> None:
    imported = {package for package, _, _ in third_party_imports()}
    assert [name for name in listed("requirements.txt") if import_name(name) not in imported] == []


def test_every_import_is_declared() -> None:
    ours = project()
    runtime = {import_name(name) for name in requirements(ours["dependencies"])}
    extras = {import_name(name) for lines in ours["optional-dependencies"].values() for name in requirements(lines)}
    imports = third_party_imports()
    assert [words for package, _, words in imports if package not in runtime | extras] == []
    assert [words for package, where, words in imports if where == "module" and package not in runtime] == []


def test_every_root_door_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    modules = tomllib.loads(text)["tool"]["setuptools"]["py-modules"]
    assert sorted(modules) == sorted(path.stem for path in ROOT.glob("*.py"))


# In the same process, since each one imports torch: what compiles nothing does not wait for torch's compiler.
WITHOUT_COMPILER = """
import torch
from engine.runtime.devices import start_runtime
from engine.train.update_rules import AdamATan2

start_runtime("cpu", compile=False)
optimizer = AdamATan2([torch.nn.Parameter(torch.ones(1))])
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules, "torch's compiler was imported"
"""


def test_engine_imports_with_torch_numpy_and_pydantic_alone() -> None:
    ours = project()
    lists = [ours["dependencies"], *ours["optional-dependencies"].values()]
    declared = {import_name(name) for lines in lists for name in requirements(lines)} | {"omegaconf", "numba"}
    blocked = sorted(declared - {"torch", "numpy", "pydantic"})
    program = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"{{name}} is not installed here", name=name)

sys.meta_path.insert(0, Blocker())
import engine.run
{WITHOUT_COMPILER}
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_text_names_no_registry_and_no_machine() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("which files belong to the project is known in a git checkout only")
    git = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    paths = [ROOT / name for name in names if name and (ROOT / name).is_file()]
    found = [f"{path.relative_to(ROOT)}: {words}" for path in paths for words in foreign_words(path.read_bytes())]
    assert found == []


def foreign_words(content: bytes) -> list[str]:
    if b"\0" in content:
        return []  # an array or a picture, not text
    text = content.decode("utf-8", errors="replace")
    return [match.group() for match in re.finditer("|".join((*HOSTS, MACHINE_PATH)), text)]


# --- the checker itself ---

SOUND = {
    "pretrain.py": "from engine.run import train\n",
    "scripts/plot_run.py": "import sys\nsys.path.insert(0, '.')\n\ndef main():\n    import matplotlib\n",
    "scripts/bench.py": "import engine.run\n",
    "dataset/__init__.py": "",
    "dataset/common.py": "import numpy\n",
    "dataset/puzzles/reader.py": "from dataset.common import Batch\n",
    "dataset/build_maze_dataset.py": "import argparse\nfrom dataset.puzzles.reader import PuzzleDataset\n",
    "models/__init__.py": "",
    "models/layers.py": "import torch\n",
    "models/act.py": "from models.layers import Block\nfrom dataset.common import IGNORE_LABEL_ID\n",
    "engine/__init__.py": "",
    "engine/config/registry.py": "import importlib\nimportlib.import_module('models.act')\n",
    "engine/train/update_rules.py": "import torch\n",
    "engine/build/puzzles.py": "from engine.train.update_rules import AdamATan2\n"
    "from dataset.puzzles.reader import PuzzleDataset\n",
    "engine/run.py": "import engine.build.puzzles\nimport engine.train.update_rules\n\ndef train():\n    import wandb\n",
    "src/__init__.py": "",
    "src/distillation/run/build.py": "from engine import run\n",
}


def test_sound_tree_passes(tmp_path: Path) -> None:
    assert violations(write_tree(tmp_path, SOUND)) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("engine/a.py", "import pretrain\n", "engine/a.py:1 imports pretrain: a door is never imported"),
        ("scripts/a.py", "import plot_run\n", "imports scripts.plot_run: a door"),
        ("dataset/a.py", "from dataset import build_maze_dataset\n", "imports dataset.build_maze_dataset: a door"),
        ("evaluators/a.py", "import numpy\n", "evaluators/ has no __init__.py"),
        ("engine/config/schema.py", "from . import optim\n", "engine.config.schema never imports engine"),
        ("dataset/common.py", "from dataset.puzzles.reader import X\n", "dataset.common never imports dataset"),
        (
            "engine/a.py",
            "from engine.train.update_rules import AdamATan2\n",
            "engine/a.py:1 names AdamATan2: only engine.build",
        ),
        ("engine/a.py", "import torch\ntorch.optim.AdamW([])\n", "engine/a.py:2 names AdamW: only engine.build"),
        ("engine/a.py", "from dataset.puzzles.reader import X\n", "engine.build and src.distillation.run.build name"),
        (
            "engine/a.py",
            "from importlib import import_module\nimport_module('os')\n",
            "only engine/config/registry.py does",
        ),
        ("models/layers.py", "from models import act\n", "a circle of imports: models"),
        ("models/layers.py", "def f():\n    import models.act\n", "a circle of imports: models"),
        ("pretrain.py", "import sys\nsys.path.append('x')\n", "pretrain.py:2 touches sys.path"),
        ("engine/a.py", "try:\n    import wandb\nexcept ImportError:\n    pass\n", "imports wandb at its top"),
        ("engine/a.py", "from torch.utils.tensorboard import SummaryWriter\n", "at its top"),
        ("engine/a.py", "import torch\ntorch.load('x')\n", "torch.load without weights_only=True"),
        ("dataset/a.py", "import numpy as np\nnp.load('x', allow_pickle=True)\n", "lets np.load unpickle"),
    ],
)
def test_checker_names_what_breaks_an_arrow(tmp_path: Path, path: str, source: str, complaint: str) -> None:
    found = violations(write_tree(tmp_path, SOUND | {path: source}))
    assert any(complaint in line for line in found), found


def test_typing_only_import_may_stand_at_the_top(tmp_path: Path) -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import wandb\n"
    assert violations(write_tree(tmp_path, SOUND | {"engine/a.py": source})) == []


@pytest.mark.parametrize("words", ["pip install --index-" + "url x", "https://py" + "pi.org/x", "cd /" + "home/ann/x"])
def test_foreign_words_are_found(words: str) -> None:
    assert foreign_words(words.encode())


@pytest.mark.parametrize("words", ["https://example.org/home/x", "checkpoints/home/x", "$HOME/root/x", "a/root/b"])
def test_ordinary_paths_are_no_foreign_words(words: str) -> None:
    assert foreign_words(words.encode()) == []
