"""Lessons: what is claimed is checked in tests only, so that no reader meets an assertion; and they run as readers run them."""

import ast
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, read_cells

sys.path.insert(0, str(Path(__file__).resolve().parent / "experiments"))
from lessons import environment, run_lesson  # noqa: E402

LESSONS = sorted((ROOT / "nbs" / "lessons").glob("*.ipynb"))
CHECKED = 'CHECKED = {"IN_TEST", "CELLSEG_CHECK_LESSONS"} & {*os.environ}'
each_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)


def is_check(node: ast.AST) -> bool:
    """Is it an assertion, or a function of `fastcore.test`?"""
    called = node.func if isinstance(node, ast.Call) else None
    return isinstance(node, ast.Assert) or isinstance(called, ast.Name) and called.id.startswith("test_")


def is_guarded(node: ast.stmt) -> bool:
    """Is it `if CHECKED:`?"""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "CHECKED" and not node.orelse


def names(nodes: list[ast.stmt], kind: type) -> set[str]:
    """Names that are stored, or loaded."""
    found = [one for node in nodes for one in ast.walk(node) if isinstance(one, ast.Name)]
    return {one.id for one in found if isinstance(one.ctx, kind)}


@each_lesson
def test_only_tests_meet_assertions(lesson):
    cells = [cell for cell in read_cells(lesson) if cell.kind == "code"]
    checking = [cell for cell in cells if any(is_guarded(one) for one in cell.statements())]
    assert [CHECKED in cell.text for cell in cells].count(True) == 1 and checking
    assert all(cell.has("hide") for cell in checking)
    plain = [one for cell in cells for one in cell.statements() if not is_guarded(one)]
    wrong = [ast.unparse(one) for top in plain for one in ast.walk(top) if is_check(one)]
    assert not wrong, f"put these under `if CHECKED:`: {wrong}"


@each_lesson
def test_nothing_else_needs_what_only_tests_have(lesson):
    statements = [one for cell in read_cells(lesson) if cell.kind == "code" for one in cell.statements()]
    guarded = [one for one in statements if is_guarded(one)]
    plain = [one for one in statements if not is_guarded(one)]
    defined = {one.name for one in plain if hasattr(one, "name")}
    only_in_tests = names(guarded, ast.Store) - names(plain, ast.Store) - defined
    inner = {arg.arg for top in plain for arg in ast.walk(top) if isinstance(arg, ast.arg)}
    assert not only_in_tests & names(plain, ast.Load) - inner


@pytest.fixture
def book(tmp_path) -> Path:
    lines = [
        "import os",
        CHECKED,
        "data = os.environ.get('CELLSEG_DATA')",
        "if CHECKED:\n    assert data is None, 'it <has> data'",
    ]
    cells = [nbformat.v4.new_code_cell(line) for line in lines]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "90_book.ipynb")
    return tmp_path / "90_book.ipynb"


def test_lessons_run_both_ways(book, tmp_path, monkeypatch):
    monkeypatch.setenv("CELLSEG_DATA", str(tmp_path))
    monkeypatch.setenv("IN_TEST", "1")  # the schedule of tests is not that of readers
    assert "IN_TEST" not in environment(True, "")
    before = book.read_bytes()
    assert run_lesson(book, environment(False, str(tmp_path / "none"))) == ""
    said = run_lesson(book, environment(True, str(tmp_path / "none")))
    assert said.startswith("AssertionError: it <has> data in the cell “if CHECKED:")
    assert book.read_bytes() == before
