"""Size and order of the package as a Markdown table: lines per room, long modules, circles of imports, repeated code.

`python tests/experiments/house.py [--root DIR]` looks at this checkout or at another one, so that two states can be
compared. Nothing is imported from what is looked at.
"""

import ast
import json
import re
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from modules import ROOMS, import_cycles, import_graph, line_count, modules, room_of  # noqa: E402

LONG, TOO_LONG = 600, 700
TOGETHER = ("run", "train", "apps")


def code_lines(path: Path) -> int:
    """Lines with code on them: not empty, not a comment alone, not in a docstring."""
    text = path.read_text(encoding="utf-8")
    documented = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    described = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            described |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(
        bool(line.strip()) and not line.lstrip().startswith("#") and number not in described
        for number, line in enumerate(text.splitlines(), 1)
    )


def largest_exported_cell(root: Path) -> tuple[int, str]:
    """Lines of the longest exported cell without its directives, and its notebook."""
    found = [(0, "")]
    for path in sorted((root / "nbs").rglob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            lines = "".join(cell["source"]).splitlines()
            if lines and re.match(r"#\|\s*export", lines[0]):
                size = sum(not line.startswith("#|") for line in lines)
                found.append((size, path.relative_to(root).as_posix()))
    return max(found)


def duplicates(root: Path) -> str:
    """How many pairs of places repeat each other; a dash where the command that counts is missing."""
    command = shutil.which("duplicates")
    if command is None:
        return "-"
    options = ["--repo", str(root), "--most", "1", "--seconds", "120"]
    done = subprocess.run([command, *options], capture_output=True, text=True, check=True)
    found = re.match(r"\d+", done.stdout)
    return found[0] if found else "0"


def rows(root: Path) -> list[tuple[str, object]]:
    """What is measured, and its value."""
    known = modules(root)
    sizes = {name: line_count(path) for name, path in known.items()}
    code = {name: code_lines(path) for name, path in known.items()}
    rooms = [room for room in ROOMS if any(room_of(name) == room for name in known)]

    def size(*chosen: str) -> str:
        inside = [name for name in known if room_of(name) in chosen]
        return f"{sum(code[name] for name in inside):,} ({sum(sizes[name] for name in inside):,})"

    largest = max(sizes, key=sizes.get)
    cell, notebook = largest_exported_cell(root)
    cycles = import_cycles(import_graph(root))
    table: list[tuple[str, object]] = [(f"{room}: lines of code (all lines)", size(room)) for room in rooms]
    table += [
        (f"{', '.join(TOGETHER)} together", size(*TOGETHER)),
        ("the whole package", f"{sum(code.values()):,} ({sum(sizes.values()):,})"),
        ("modules", len([name for name in known if sizes[name]])),
        ("largest module", f"{largest}: {sizes[largest]:,} lines"),
        ("largest exported cell", f"{notebook}: {cell} lines"),
        (f"modules over {LONG} lines", sum(lines > LONG for lines in sizes.values())),
        (f"modules over {TOO_LONG} lines", sum(lines > TOO_LONG for lines in sizes.values())),
        ("groups of modules that import each other", len(cycles)),
        ("pairs of places that repeat each other", duplicates(root)),
    ]
    return table


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).resolve().parent.parent.parent
    parser.add_argument("--root", type=Path, default=here, help="another checkout")
    root = parser.parse_args().root.resolve()
    if not (root / "cellseg_nb").is_dir():
        sys.exit(f"error: {root} is no checkout of this package: it has no folder cellseg_nb")
    print("| what | value |\n| --- | --- |")
    for name, value in rows(root):
        print(f"| {name} | {value} |")


if __name__ == "__main__":
    main()
