"""Small wrong changes to the code, one at a time, and whether the tests of the same notebook notice them.

    python tests/experiments/mutants.py [--only TEXT ...] [--seconds 300]

The changes stand in `mutants.tsv`. Each is made in a copy of the repository, in the notebook and in its module. Cells that need data sets are left out.
Tests that take too long have neither noticed the change nor missed it.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import copy_house  # noqa: E402


class Mutant(NamedTuple):
    """A wrong change."""

    notebook: str  # below nbs/, without its ending
    old: str  # of one line; stands once in the notebook
    new: str
    what: str


def read_mutants() -> list[Mutant]:
    """The table of changes beside this script; texts are written as they stand in the code."""
    lines = Path(__file__).with_suffix(".tsv").read_text(encoding="utf-8").splitlines()
    return [Mutant(*line.split("\t")) for line in lines[1:]]


OWN = ("PYTHONPATH", "CELLSEG_DATA", "NBDEV_TEST")  # variables that are not handed on


def files_of(root: Path, notebook: str) -> tuple[Path, Path]:
    """A notebook and its module."""
    module = re.sub(r"(^|/)\d+_", r"\1", notebook)
    return root / "nbs" / f"{notebook}.ipynb", root / "cellseg_nb" / f"{module}.py"


def changed(root: Path, mutant: Mutant) -> dict[Path, str]:
    """Both files and what they become; an error names a text that is not there, or not once."""
    found = {}
    for path, quoted in zip(files_of(root, mutant.notebook), (True, False)):
        old, new = (json.dumps(one, ensure_ascii=False)[1:-1] if quoted else one for one in mutant[1:3])
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise SystemExit(f"error: {path.relative_to(root)} has {text.count(old)} times, not once: {mutant.old}")
        found[path] = text.replace(old, new)
    compile(found[path], str(path), "exec")
    return found


def outcome(command: list, seconds: float, **how) -> str:
    """Run a command: "passed", "failed", or "time out", when it is ended with all that it started."""
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    process = subprocess.Popen(command, **quiet, **how)
    try:
        return "failed" if process.wait(seconds) else "passed"
    except subprocess.TimeoutExpired:
        return "time out"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def tests_of(root: Path, notebook: str, seconds: float) -> str:
    """The outcome of the tests of one notebook."""
    nbdev_test = Path(sys.executable).parent / "nbdev_test"
    command = [nbdev_test, "--path", files_of(root, notebook)[0], "--n_workers", "1"]
    light = {"PYTHONPATH": str(root), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    variables = {name: value for name, value in os.environ.items() if name not in OWN} | light
    return outcome(command, seconds, cwd=root, env=variables)


def tests_with(mutant: Mutant, root: Path, seconds: float) -> str:
    """Make a change, run the tests, and take it back."""
    files = changed(root, mutant)
    with tempfile.TemporaryDirectory() as folder:
        kept = {path: shutil.copy2(path, Path(folder) / path.name) for path in files}
        try:
            for path, text in files.items():
                path.write_text(text, encoding="utf-8")
            return tests_of(root, mutant.notebook, seconds)
        finally:
            for path, copy in kept.items():
                shutil.copy2(copy, path)  # with its time, so that what was compiled of it stays valid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], help="notebooks with one of these texts in their names")
    parser.add_argument("--seconds", type=float, default=300, help="for the tests of one notebook")
    options = parser.parse_args()
    chosen = [one for one in read_mutants() if any(text in one.notebook for text in options.only)]
    started, caught = time.time(), 0
    words = {"failed": "caught", "passed": "**survived**", "time out": "**took too long**"}
    with tempfile.TemporaryDirectory() as folder:
        root = copy_house(Path(folder))
        for one in chosen:
            changed(root, one)
        for notebook in sorted({one.notebook for one in chosen}):
            found = tests_of(root, notebook, options.seconds)
            if found != "passed":
                sys.exit(
                    f"error: tests of nbs/{notebook}.ipynb before anything is changed: {found} (--seconds {options.seconds:g})"
                )
        print("| notebook | change | tests |\n| --- | --- | --- |", flush=True)
        for one in chosen:
            found = tests_with(one, root, options.seconds)
            caught += found == "failed"
            print(f"| {one.notebook} | {one.what} | {words[found]} |", flush=True)
    print(f"\n{caught} of {len(chosen)} caught, in {(time.time() - started) / 60:.0f} min")
    sys.exit(caught < len(chosen))


if __name__ == "__main__":
    main()
