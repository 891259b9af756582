"""Exit rules: which evidence lets a token leave, and the threshold that a checkpoint carries."""

import json

import pytest
import torch

from engine.generate.exits import EXIT_FILE, calibrated_options, evidence, may_exit, write_thresholds
from engine.generate.options import DecodeOptions, ExitRule, ReplyOptions

SURE, UNSURE = torch.tensor([[4.0, 0.0], [0.1, 0.0]])[:, None]


@pytest.mark.parametrize(
    ("kind", "logits", "before", "q_halt", "may"),
    [
        ("kl", SURE, SURE, 0.0, True),
        ("kl", SURE, UNSURE, 0.0, False),
        ("margin", SURE, UNSURE, 0.0, True),
        ("margin", UNSURE, UNSURE, 0.0, False),
        ("head", UNSURE, SURE, 3.0, True),
        ("head", SURE, SURE, -3.0, False),
    ],
)
def test_each_rule_looks_at_its_own_evidence(kind, logits, before, q_halt, may):
    rule = ExitRule(kind, 0.01 if kind == "kl" else 0.5)
    assert may_exit(rule, logits, before, torch.tensor([q_halt])).tolist() == [may]


def test_evidence_is_divergence_lead_and_probability():
    now, before = torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    divergence = sum(p * (torch.log(torch.tensor(p / q))) for p, q in ((0.5, 0.25), (0.3, 0.5), (0.2, 0.25)))
    for kind, expected in (("kl", float(divergence)), ("margin", 0.2), ("head", 0.5)):
        assert float(evidence(kind, now, before, torch.zeros(1))) == pytest.approx(expected, abs=1e-5)


def test_a_rule_takes_its_threshold_from_the_checkpoint_unless_one_is_given(tmp_path):
    given, usual, off = (
        ReplyOptions(decode=DecodeOptions(exit=rule)) for rule in (ExitRule("kl", 0.5), ExitRule("kl"), ExitRule())
    )
    assert calibrated_options(off, tmp_path) is off and calibrated_options(given, tmp_path) is given
    with pytest.raises(ValueError, match="exit.json.*calibrate_exit.py"):
        calibrated_options(usual, tmp_path)
    assert write_thresholds(tmp_path, {"kl": {"threshold": 0.25}}) == tmp_path / EXIT_FILE
    assert calibrated_options(usual, tmp_path).decode.exit == ExitRule("kl", 0.25)
    with pytest.raises(ValueError, match="'head'"):
        calibrated_options(ReplyOptions(decode=DecodeOptions(exit=ExitRule("head"))), tmp_path)
    for written, told in ((json.dumps({"kl": 0.5}), "'kl'"), ("[]", "list"), ("{", "not JSON")):
        (tmp_path / EXIT_FILE).write_text(written)
        with pytest.raises(ValueError, match=f"exit.json.*{told}.*--exit-threshold"):
            calibrated_options(usual, tmp_path)


CALIBRATION = {
    "steps": 6,
    "kl": {"threshold": 0.25, "mean_depth": 3.5},
    "margin": {"threshold": 0.5, "mean_depth": 2.5},
    "head": {"threshold": 0.75, "mean_depth": 4.5},
}


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, "margin"),  # as older versions write it
        ({"best": "head"}, "head"),
        ({"best": "unheard of"}, "margin"),
        ({"margin": {"mean_depth": 2.5}}, "kl"),
    ],
)
def test_auto_depth_is_the_calibrated_rule_that_goes_least_deep(changes, kind, tmp_path):
    write_thresholds(tmp_path, CALIBRATION | changes)
    asked = ReplyOptions(decode=DecodeOptions(depth="auto"))
    found = calibrated_options(asked, tmp_path).decode
    assert found.exit == ExitRule(kind, CALIBRATION[kind]["threshold"]) and found.depth == 6


def test_a_calibrated_threshold_comes_with_its_number_of_steps_unless_a_depth_is_given(tmp_path):
    write_thresholds(tmp_path, CALIBRATION)
    for depth, expected in ((None, 6), (3, 3)):
        asked = ReplyOptions(decode=DecodeOptions(depth=depth, exit=ExitRule("kl")))
        assert calibrated_options(asked, tmp_path).decode.depth == expected


def test_auto_depth_without_a_calibration_says_how_to_calibrate(tmp_path):
    asked = ReplyOptions(decode=DecodeOptions(depth="auto"))
    with pytest.raises(ValueError, match="exit.json.*calibrate_exit.py"):
        calibrated_options(asked, tmp_path)
    write_thresholds(tmp_path, {"kl": 3, "steps": 6})
    with pytest.raises(ValueError, match="exit.json.*'kl'.*calibrate_exit.py"):
        calibrated_options(asked, tmp_path)
