"""Flags made from a config's fields: given ones win, what is not given stays, and texts mean what they mean in YAML."""

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from engine.config.flags import FlagParser, also, merged, read_yaml, yaml_options
from engine.config.parse import ConfigError
from engine.config.schema import Strict


class Options(Strict):
    steps: int = Field(3, ge=1, description="how many; 50% more is fine")
    rate: float = Field(0.5, json_schema_extra=also("lr"))
    limit: int | None = 7
    kind: Literal["a", "b"] = Field("a", json_schema_extra=also(reverse="b"))
    names: list[str] = ["x"]
    is_on: bool = True


def read(*argv: str) -> Options:
    return FlagParser(Options, "A test.").read(argv)[0]


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


def test_all_problems_are_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "options.yaml").write_text("stepps: 5\nkind: c\n")
    with pytest.raises(SystemExit):
        read("--config", str(tmp_path / "options.yaml"), "--steps", "many")
    text = capsys.readouterr().err
    assert "stepps: unknown key, did you mean steps?" in text
    assert "kind" in text and "steps: input should be a valid integer" in text


def test_help_names_every_option_with_its_default() -> None:
    text = " ".join(FlagParser(Options, "A test.").format_help().split())
    for words in (
        "--steps VALUE",
        "--lr VALUE",
        "50% more is fine; default 3",
        "--no-is-on",
        "default 7",
        "--kind {a,b}",
        "--reverse",
    ):
        assert words in text


def test_missing_and_broken_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.yaml"):
        read_yaml(tmp_path / "nowhere.yaml")
    with pytest.raises(ValueError, match="here"):
        yaml_options("a: [1", where="here")
    with pytest.raises(ValueError, match="list"):
        yaml_options("- 1\n- 2", where="here")
    with pytest.raises(ValueError, match="here.*aliases"):
        yaml_options("a: &a [1]\nb: [" + "*a, " * 20 + "]", where="here")
    (tmp_path / "noise.yaml").write_bytes(b"\x00\xff")
    with pytest.raises(ValueError, match=r"noise\.yaml"):
        read_yaml(tmp_path / "noise.yaml")


def test_lists_grow_and_a_switch_is_short_for_a_value() -> None:
    assert read("--names", "p", "--names", "q", "r").names == ["p", "q", "r"]
    assert read("--reverse").kind == "b"


def test_other_names_mean_the_same_in_files_and_flags_win_over_them(tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("lr: 1e-3\nreverse: true\n")
    file = ("--config", str(tmp_path / "options.yaml"))
    assert (read(*file).rate, read(*file).kind) == (1e-3, "b")
    assert (read(*file, "--rate", "0.1").rate, read(*file, "--kind", "a").kind) == (0.1, "a")
    assert merged(Options, {"reverse": False, "kind": "a"}).kind == "a"


@pytest.mark.parametrize(
    ("options", "token"),
    [
        ({"lr": 0.1, "rate": 0.2}, "rate=0.2"),
        ({"reverse": True, "kind": "a"}, "kind=a"),
        ({"reverse": "maybe"}, "maybe"),
    ],
)
def test_one_option_under_two_names_is_refused(options: dict[str, Any], token: str) -> None:
    with pytest.raises(ConfigError, match=token):
        merged(Options, options)


@pytest.mark.parametrize(
    ("line", "token"),
    [
        (("--step", "3"), "--steps"),
        (("stray",), "stray"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
        (("--steps", "many"), "steps"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_names_what_is_wrong(
    line: tuple[str, ...], token: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        read(*line)
    assert left.value.code == 2 and token in capsys.readouterr().err
