"""Turns "module@Class" into a class of our own packages, and lists what exists when there is no such class."""

import ast
import difflib
import importlib
import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PREFIXES = ("models.", "evaluators.")
# Modules that configs of older checkpoints name, and where their classes are now.
FORMER_MODULES = {"text_loss": "losses"}
IDENTIFIER = re.compile(r"([A-Za-z]\w*(?:\.[A-Za-z]\w*)*)[@:]([A-Za-z]\w*)", re.ASCII)


def load_model_class(identifier: str, prefix: str = "models.") -> type:
    """Resolve an identifier such as "recursive_reasoning.trm@TinyRecursiveModel" within one of our packages."""
    if prefix not in PREFIXES:
        raise ValueError(f"Classes are loaded from {' or '.join(PREFIXES)} only, not from {prefix!r}.")
    modules = _module_files(prefix)
    parts = IDENTIFIER.fullmatch(identifier)
    if parts is None:
        raise ValueError(
            f"{identifier!r} is not a class identifier; expected module@Class with a module of {prefix[:-1]}/: "
            f"{', '.join(modules)}."
        )
    module, name = parts.groups()
    module = FORMER_MODULES.get(module, module)
    if module not in modules:
        raise ValueError(
            f"{identifier!r}: {prefix[:-1]}/ has no module {module!r}{_nearest(module, modules)}. "
            f"The modules are: {', '.join(modules)}."
        )

    found = getattr(importlib.import_module(prefix + module), name, None)
    # A module also holds what it imports, and only our own classes may be built from a configuration.
    if not isinstance(found, type) or not found.__module__.startswith(prefix):
        classes = _class_names(modules[module])
        raise ValueError(
            f"{identifier!r}: {prefix}{module} defines no class {name!r}{_nearest(name, classes)}. "
            f"It defines: {', '.join(classes) or 'no classes'}."
        )
    return found


def _module_files(prefix: str) -> dict[str, Path]:
    """Every module of the package by its dotted name below the package, found without importing anything.

    A sub-package is a module too if its `__init__.py` hands classes on.
    """
    package = ROOT / prefix[:-1]
    files = [path for path in package.rglob("*.py") if not path.name.startswith("_")]
    faces = [path for path in package.glob("*/__init__.py") if _class_names(path)]
    named = {path.relative_to(package).with_suffix(""): path for path in files}
    named |= {path.relative_to(package).parent: path for path in faces}
    return {".".join(name.parts): named[name] for name in sorted(named)}


def _class_names(path: Path) -> list[str]:
    """Public classes at the top of a file, and the other names it gives them; of a package, those it hands on."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    if path.name == "__init__.py":
        return [
            alias.asname for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names if alias.asname
        ]
    names: list[str] = []
    for node in nodes:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            names.append(node.name)
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id in names:
            names.extend(target.id for target in node.targets if isinstance(target, ast.Name))
    return names


def _nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that was probably meant, also when only the folder before it was left out."""
    by_ending = {full.rpartition(".")[2].lower(): full for full in known} | {full.lower(): full for full in known}
    close = difflib.get_close_matches(name.lower(), by_ending, n=1)
    return f" (did you mean {by_ending[close[0]]!r}?)" if close else ""
