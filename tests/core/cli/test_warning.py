import subprocess
import sys

PROGRAM = """
import warnings
from unidiff_core.cli.warning import tidy_warnings
tidy_warnings()
warnings.warn("left out: 3 of 9 samples")
warnings.warn("Found 27 module(s) in eval mode at the start of training. This may lead to unexpected behavior")
warnings.warn("another kind", RuntimeWarning)
"""


def test_a_warning_is_one_line_and_advice_to_programmers_is_none():
    lines = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True).stderr.splitlines()
    assert lines[0] == "unidiffuser: left out: 3 of 9 samples"
    assert lines[1].endswith("RuntimeWarning: another kind") and len(lines) <= 3
