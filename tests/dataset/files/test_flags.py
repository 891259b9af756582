"""Numbers on the builders' command lines."""

import argparse

import pytest

from dataset.files.flags import add_common_flags


@pytest.mark.parametrize("value", ["99999999999999999999999", "4294967296", "-1", "1.5", "nan"])
def test_a_seed_beyond_what_generators_take_is_refused(value, capsys):
    parser = argparse.ArgumentParser()
    add_common_flags(parser, default_seed=42)
    assert parser.parse_args(["--seed", "4294967295"]).seed == 2**32 - 1
    with pytest.raises(SystemExit):
        parser.parse_args(["--seed", value])
    assert "--seed" in capsys.readouterr().err
