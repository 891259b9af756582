"""All cases of the pretended device."""

from tests.gpu import decode_cases, distill_cases, measured_cases, puzzle_cases, text_cases
from tests.gpu.place import CASES, Case

__all__ = ["CASES", "Case", "decode_cases", "distill_cases", "measured_cases", "puzzle_cases", "text_cases"]
