"""What every test can use: the notebooks, a copy of the repository, the mark of data tests."""

import ast
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOUSE = [
    "cellseg_nb",
    "nbs",
    "_quarto.yml",
    "settings.ini",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
]


def notebooks(root: Path = ROOT) -> list[Path]:
    """All notebooks of the repository, as nbdev sees them."""
    paths = sorted((root / "nbs").rglob("*.ipynb"))
    return [path for path in paths if not any(part[0] in "._" for part in path.relative_to(root).parts)]


@dataclass
class Cell:
    """One cell of a notebook: its kind, its `#|` directives and the rest of its text."""

    kind: str
    directives: list[str]
    text: str
    data: dict

    def has(self, *names: str) -> bool:
        """Does the cell carry one of these directives?"""
        return any(directive.split()[0].rstrip(":") in names for directive in self.directives)

    def statements(self) -> list[ast.stmt]:
        """The Python of a code cell; empty for Markdown, magics and shell commands."""
        if self.kind != "code" or self.text.lstrip()[:1] in ("%", "!"):
            return []
        return ast.parse(self.text).body


def read_cells(path: Path) -> list[Cell]:
    """The cells of a notebook."""
    cells = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        lines = "".join(cell["source"]).splitlines()
        directives = [line[2:].strip() for line in lines if line.startswith("#|") and cell["cell_type"] == "code"]
        text = "\n".join(lines[len(directives) :]).strip("\n")
        cells.append(Cell(cell["cell_type"], [line for line in directives if line], text, cell))
    return cells


def notebook_id(path: Path) -> str:
    return path.relative_to(ROOT / "nbs").as_posix()


@pytest.fixture(params=notebooks(), ids=notebook_id)
def notebook(request) -> Path:
    """Each notebook in turn."""
    return request.param


def copy_house(folder: Path) -> Path:
    """Copy what builds the package and its documentation."""
    copy = folder / "cellseg_nb"
    copy.mkdir()
    leave_out = shutil.ignore_patterns("__pycache__", ".*", "cellseg_out")
    for name in HOUSE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=leave_out)
        else:
            shutil.copy(source, copy / name)
    return copy


@pytest.fixture
def house(tmp_path) -> Path:
    """A copy of the repository that a test may change."""
    return copy_house(tmp_path)


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "needs_data(folder): reads a folder of CELLSEG_DATA; skipped only where that is not set",
    )


def pytest_runtest_setup(item):
    marker = item.get_closest_marker("needs_data")
    if marker is None:
        return
    if not os.environ.get("CELLSEG_DATA"):
        pytest.skip("CELLSEG_DATA is not set (see data/README.md)")
    for folder in marker.args:
        path = Path(os.environ["CELLSEG_DATA"]) / folder
        assert path.exists(), f"CELLSEG_DATA is set, but {path} does not exist"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and item.get_closest_marker("needs_data") and os.environ.get("CELLSEG_DATA"):
        report.outcome = "failed"
        report.longrepr = f"CELLSEG_DATA is set, so this test may not be skipped: {call.excinfo.value}"
    return report


def pytest_terminal_summary(terminalreporter):
    started = os.environ.get("CELLSEG_TESTS_STARTED")
    if started:
        tests = sum(len(terminalreporter.getreports(kind)) for kind in ("passed", "failed"))
        seconds = round(time.time() - float(started))
        terminalreporter.write_sep("=", "notebooks and tests together")
        terminalreporter.write_line(
            f"{len(notebooks())} notebooks and {tests} pytest tests in {seconds // 60} min {seconds % 60} s"
        )
