"""What a picture of 5,000 x 5,000 pixels costs from end to end: `python tests/bench/marks.py [--size 5000] [--grid 60] [--workers 2]`.

A simulated sample goes through `cellseg marks run` in a process of its own: seconds and percent by step, and the peak memory of all its processes
together (what they share is counted once, where the system says so). Then the same again, which finds all steps finished; and every number is compared with the truth.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pandas as pd

LIMIT_MB = 2000


def _memory_mb(process: int) -> float:
    """Proportional memory of a process; MB."""
    for name, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        try:
            lines = Path(f"/proc/{process}/{name}").read_text().splitlines()
            return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024
        except (OSError, StopIteration):
            continue
    return 0.0


def _with_children(process: int) -> list[int]:
    """A process and all that it began."""
    found = [process]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += [int(number) for number in task.read_text().split()]
            except OSError:
                continue
    return found


def run_watched(line: list[str]) -> tuple[float, float]:
    """Run a command of cellseg; seconds, peak memory of all its processes in MB (nan where there is no /proc)."""
    code = "from cellseg_nb.run.cli import main; main()"
    started, peak = time.perf_counter(), [float("nan")]
    process = subprocess.Popen([sys.executable, "-c", code, *line], stdout=subprocess.DEVNULL)

    def watch():
        while process.poll() is None:
            if Path("/proc/self/status").exists():
                now = sum(_memory_mb(one) for one in _with_children(process.pid))
                peak[0] = now if peak[0] != peak[0] else max(peak[0], now)
            time.sleep(0.1)

    thread = threading.Thread(target=watch)
    thread.start()
    if process.wait():
        raise SystemExit(f"cellseg {' '.join(line)} failed")
    thread.join()
    return time.perf_counter() - started, peak[0]


def wrong_numbers(dataset: Path) -> tuple[int, int]:
    """Marks that were found with another number than theirs; marks that were found."""
    from cellseg_nb.data.io import read_labels

    truth, numbers = (read_labels(dataset / place / "slide1" / "slide1_labels.tif") for place in ("truth", "am_coords"))
    both = (numbers > 0) & (truth > 0)
    pairs = (
        pd.DataFrame({"found": numbers[both], "true": truth[both]}).value_counts().reset_index().drop_duplicates("true")
    )
    return int((pairs.found != pairs.true).sum()), len(pairs)


def main() -> None:
    from cellseg_nb.data.simulate_marks import write_simulated_marks

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=5000)
    parser.add_argument("--grid", type=int, default=60, help="rows and columns")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--model", default="marks")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset, n = Path(folder) / "set", chosen.grid
        started = time.perf_counter()
        write_simulated_marks(dataset, ["slide1"], (chosen.size, chosen.size), n, n, seed=80)
        print(f"  simulated {chosen.size}² with {n} x {n} marks, and written: {time.perf_counter() - started:.1f} s")
        how = f"--rows {n} --cols {n} --workers {chosen.workers} --model {chosen.model}"
        seconds, peak = run_watched(["marks", "run", str(dataset), *how.split()])
        spent = json.loads((dataset / "marks_run.json").read_text())["seconds"]["slide1"]
        for step, one in spent.items():
            print(f"  {step:10} {one:7.1f} s  {one / seconds:4.0%}")
        rest = seconds - sum(spent.values())
        print(
            f"  {'start, end':10} {rest:7.1f} s  {rest / seconds:4.0%}\n  {'all':10} {seconds:7.1f} s, {chosen.workers} processes; "
            f"peak memory {peak:.0f} MB of all processes (limit {LIMIT_MB})"
        )
        print("  {} of {} marks have a wrong number".format(*wrong_numbers(dataset)))
        seconds, _ = run_watched(["marks", "run", str(dataset), *how.split()])
        print(f"  again: {seconds:.1f} s")


if __name__ == "__main__":
    main()
