"""Every change that `experiments/mutants.py` makes can still be made, and tests that hang are ended."""

import sys
import time
from pathlib import Path

import pytest
from experiments.mutants import changed, outcome, read_mutants

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("mutant", read_mutants(), ids=lambda one: f"{one.notebook}: {one.what}")
def test_a_mutant_stands_once_in_the_code(mutant):
    for path, text in changed(ROOT, mutant).items():
        assert text != path.read_text(encoding="utf-8")


@pytest.mark.parametrize("code, expected", [("0", "passed"), ("1", "failed")])
def test_the_outcome_of_a_command(code, expected):
    assert outcome([sys.executable, "-c", f"raise SystemExit({code})"], 60) == expected


def test_what_takes_too_long_is_ended_with_all_that_it_started(tmp_path):
    child = f"import time; time.sleep(6); open({str(tmp_path / 'alive')!r}, 'w')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert outcome([sys.executable, "-c", parent], 2) == "time out"
    time.sleep(6)
    assert not (tmp_path / "alive").exists()
