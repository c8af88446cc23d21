"""Every change that `experiments/mutants.py` makes can still be made."""

from pathlib import Path

import pytest
from experiments.mutants import changed, read_mutants

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("mutant", read_mutants(), ids=lambda one: f"{one.notebook}: {one.what}")
def test_a_mutant_stands_once_in_the_code(mutant):
    for path, text in changed(ROOT, mutant).items():
        assert text != path.read_text(encoding="utf-8")
