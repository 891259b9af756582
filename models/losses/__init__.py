"""Losses and the heads that compute them; configs name the heads as `losses@ACTLossHead`, `losses@TextLossHead`."""

from models.losses.puzzles import ACTLossHead as ACTLossHead
from models.losses.text import TextLossHead as TextLossHead
