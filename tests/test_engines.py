"""tests/engines.py in a process of its own: one that has loaded OpenVINO crashes by a signal after a fork."""

import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).with_name("engines.py")


@pytest.mark.slow
def test_engines():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(FILE)],
        cwd=FILE.parents[1], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
