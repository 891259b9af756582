"""Class identifiers load our own classes and nothing else, and a wrong one is answered with what exists."""

import sys

import pytest

from engine.config import registry
from engine.config.registry import load_model_class


@pytest.fixture
def toy_package(tmp_path, monkeypatch):
    """A package "toybox" in place of models/: one module at the top, one in a folder, one that must not be imported."""
    package = tmp_path / "toybox"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "__init__.py").write_text("class Hidden: ...\n")
    (package / "shapes.py").write_text(
        "from collections import OrderedDict\n"
        "from torch.nn import Linear\n"
        "SIZE = 3\n"
        "class Square: ...\n"
        "class _Private: ...\n"
        "Quadrat = Square\n"
        "def make(): ...\n"
    )
    (package / "inner" / "deep.py").write_text("from toybox.shapes import Square\nclass Diver: ...\n")
    (package / "untouched.py").write_text("raise RuntimeError('this module was imported')\n")
    (tmp_path / "outside.py").write_text("class Stranger: ...\n")
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    monkeypatch.setattr(registry, "PREFIXES", ("toybox.",))
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "toybox"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("identifier", "name"),
    [
        ("shapes@Square", "Square"),
        ("shapes:Square", "Square"),
        ("shapes@Quadrat", "Square"),
        ("inner.deep@Diver", "Diver"),
        ("inner.deep@Square", "Square"),
    ],
)
def test_own_classes_load(toy_package, identifier, name):
    assert load_model_class(identifier, prefix="toybox.").__name__ == name


@pytest.mark.parametrize(
    "identifier",
    [
        "",
        "shapes",
        "@Square",
        "shapes@",
        "shapes@Square@Square",
        "shapes@Square.mro",
        ".shapes@Square",
        "..outside@Stranger",
        "inner..deep@Diver",
        "../outside@Stranger",
        "shapes@__class__",
        "shapes@_Private",
        "__init__@Hidden",
        "shapes @Square",
        "shapes@Square\n",
    ],
)
def test_malformed_identifier_lists_the_modules(toy_package, identifier):
    with pytest.raises(ValueError, match="module@Class.*inner.deep, shapes, untouched"):
        load_model_class(identifier, prefix="toybox.")


@pytest.mark.parametrize("identifier", ["os@PathLike", "outside@Stranger", "inner@Hidden", "toybox.shapes@Square"])
def test_modules_outside_the_package_are_unknown(toy_package, identifier):
    with pytest.raises(ValueError, match="inner.deep, shapes, untouched"):
        load_model_class(identifier, prefix="toybox.")


@pytest.mark.parametrize("name", ["Linear", "OrderedDict", "SIZE", "make", "Circle"])
def test_only_classes_of_the_package_count(toy_package, name):
    with pytest.raises(ValueError, match="Square, Quadrat"):
        load_model_class(f"shapes@{name}", prefix="toybox.")


@pytest.mark.parametrize(
    ("identifier", "meant"),
    [
        ("shape@Square", "shapes"),
        ("deep@Diver", "inner.deep"),
        ("shapes@Sqare", "Square"),
        ("shapes@quadrat", "Quadrat"),
    ],
)
def test_nearest_name_is_offered(toy_package, identifier, meant):
    with pytest.raises(ValueError, match=f"'{meant}'"):
        load_model_class(identifier, prefix="toybox.")


def test_unrelated_names_get_no_hint(toy_package):
    with pytest.raises(ValueError) as caught:
        load_model_class("zzz@Square", prefix="toybox.")
    assert "did you mean" not in str(caught.value)


def test_other_prefixes_are_refused():
    with pytest.raises(ValueError, match="'engine.'"):
        load_model_class("runtime@Runtime", prefix="engine.")


@pytest.mark.parametrize(
    "identifier",
    [
        "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1",
        "recursive_reasoning.trm_singlez@TinyRecursiveReasoningModel_ACTV1",
        "recursive_reasoning.trm_hier6@TinyRecursiveReasoningModel_ACTV1",
        "recursive_reasoning.hrm@HierarchicalReasoningModel_ACTV1",
        "recursive_reasoning.transformers_baseline@Model_ACTV2",
        "losses@ACTLossHead",
    ],
)
def test_documented_identifiers_exist(identifier):
    assert load_model_class(identifier).__module__.startswith("models." + identifier.split("@")[0])


def test_module_of_torch_cannot_be_reached_through_our_own():
    with pytest.raises(ValueError, match="'Tensor'"):
        load_model_class("recursive_reasoning.trm@Tensor")
