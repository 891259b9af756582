"""Flags made from a config's fields: given ones win, what is not given stays, and texts mean what they mean in YAML."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field

from engine.config.schema import ConfigError, Strict
from src.distillation.config.flags import parser_of, read_config, yaml_options


class Options(Strict):
    steps: int = Field(3, ge=1, description="how many; 50% more is fine")
    rate: float = Field(0.5, json_schema_extra={"flags": ["--lr"]})
    limit: int | None = 7
    kind: Literal["a", "b"] = "a"
    names: list[str] = ["x"]
    is_on: bool = True


def read(*argv: str) -> Options:
    return read_config(Options, argv, "A test.")


def test_flag_wins_over_file_and_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("steps: 5\nrate: 1e-4\nis_on: false\n")
    found = read("--config", str(file), "--steps", "9")
    assert (found.steps, found.rate, found.is_on, found.kind) == (9, 1e-4, False, "a")
    assert read("--config", str(file), "--is-on").is_on


def test_default_of_a_flag_does_not_overwrite_the_file(tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("limit: 1\nnames: [p, q]\n")
    found = read("--config", str(tmp_path / "options.yaml"))
    assert (found.limit, found.names) == (1, ["p", "q"])


def test_flags_have_every_kind_of_value() -> None:
    found = read("--lr", "2e-3", "--limit", "none", "--names", "p", "q", "--no-is-on", "--kind", "b")
    assert found == Options(rate=2e-3, limit=None, names=["p", "q"], is_on=False, kind="b")
    assert read("--names").names == []
    assert read("--limit=null").limit is None


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("stepps: 5\nkind: c\n")
    with pytest.raises(ConfigError) as found:
        read("--config", str(tmp_path / "options.yaml"), "--steps", "many")
    text = str(found.value)
    assert "stepps: unknown key, did you mean steps?" in text
    assert "kind" in text and "steps: input should be a valid integer" in text


def test_help_names_every_option_with_its_default() -> None:
    text = " ".join(parser_of(Options, "A test.").format_help().split())
    for words in ("--steps VALUE", "--lr VALUE", "50% more is fine; default 3", "--no-is-on", "default 7"):
        assert words in text


def test_missing_and_broken_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config file .*nowhere\.yaml.*configs/"):
        read("--config", str(tmp_path / "nowhere.yaml"))
    with pytest.raises(ValueError, match="here is no YAML of options"):
        yaml_options("a: [1", where="here")
    with pytest.raises(ValueError, match="here holds a list"):
        yaml_options("- 1\n- 2", where="here")
