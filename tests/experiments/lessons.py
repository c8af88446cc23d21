"""Every lesson as readers run it, on their schedule and with all cells: without data sets, and with those on this computer.

`python tests/experiments/lessons.py [NAME ...]` prints a Markdown table of minutes, and what went wrong; `make lessons` is the
same. What the texts claim is checked on the way (CELLSEG_CHECK_LESSONS), which readers never meet. Nothing is saved.
"""

import os
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

LESSONS = Path(__file__).resolve().parents[2] / "nbs" / "lessons"
CELL_S = 1200  # a cell that takes longer is broken


def environment(data: bool, empty: str) -> dict[str, str]:
    """Variables for a kernel; without data sets, caches lie in the folder `empty`, too."""
    left_out = {"IN_TEST", "MPLBACKEND"} | (set() if data else {"CELLSEG_DATA"})
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return kept | {"CELLSEG_CHECK_LESSONS": "1"} | ({} if data else {"XDG_CACHE_HOME": empty})


def run_lesson(path: Path, variables: dict[str, str]) -> str:
    """Run all cells of a notebook in its folder; what went wrong in one line, or nothing."""
    book = nbformat.read(path, as_version=4)
    client = NotebookClient(book, timeout=CELL_S, resources={"metadata": {"path": str(path.parent)}})
    try:
        client.execute(env=variables)
    except CellExecutionError as error:
        cell = next(one for one in book.cells if any(out.output_type == "error" for out in one.get("outputs", ())))
        return f"{error.ename}: {error.evalue} in the cell “{cell.source[:200]}”".replace("\n", " ")
    except (CellTimeoutError, DeadKernelError) as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")
    return ""


def main(names: list[str]) -> int:
    """Run lessons both ways; 1 = something went wrong."""
    from cellseg_nb.data.catalog import locate

    paths = [path for path in sorted(LESSONS.glob("*.ipynb")) if not names or path.stem in names]
    ways = {"without data": False} | ({"with data": True} if locate("dsb2018") is not None else {})
    print(f"| lesson | {' | '.join(f'{way}, min' for way in ways)} |\n| --- {'| --- ' * len(ways)}|")
    wrong = []
    for path in paths:
        minutes = []
        for way, data in ways.items():
            started = time.monotonic()
            with TemporaryDirectory() as empty:
                problem = run_lesson(path, environment(data, empty))
            minutes.append(f"{(time.monotonic() - started) / 60:.1f}{' (failed)' if problem else ''}")
            wrong += [f"{path.stem}, {way}: {problem}"] if problem else []
            if problem:
                print(wrong[-1], file=sys.stderr, flush=True)
        print(f"| {path.stem} | {' | '.join(minutes)} |", flush=True)
    if len(ways) == 1:
        print("with data: dsb2018 is not on this computer; `cellseg data get dsb2018` fetches it")
    print("\n".join(wrong) or f"{len(paths)} lessons, nothing went wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="lessons, as 01_nuclei; none = all")
    sys.exit(main(parser.parse_args().names))
