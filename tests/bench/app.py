"""Seconds from the start of Chromium to the first picture of the app, and from a moved control to its new picture.

`python tests/bench/app.py`. The server is started first; each run opens the page in a new browser, with a new kernel.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))
import test_app as app

RUNS, MOVES = 2, 6


def main():
    if app.CHROMIUM is None:
        print("skipped: Chromium is not installed")
        return
    first, moved = [], []
    with tempfile.TemporaryDirectory() as folder, app.served(Path(folder)) as address:
        for _ in range(RUNS):
            start = time.perf_counter()
            with app.browser_page() as page:
                app.open_app(page, address)
                first.append(time.perf_counter() - start)
                app.set_number(page, "Smallest object, px", 0)
                app.wait_for_count(page, lambda n: n > 0)
                for size_px in range(100, 100 + 100 * MOVES, 100):
                    before, start = app.count(page), time.perf_counter()
                    app.set_number(page, "Smallest object, px", size_px)
                    app.wait_for_count(page, lambda n: n != before)
                    moved.append(time.perf_counter() - start)
    times = ", ".join(f"{seconds:.1f}" for seconds in first)
    print(f"start of Chromium to first picture (512 x 512, network): {times} s")
    print(f"moved control to new count, median of {len(moved)}: {statistics.median(moved):.2f} s")


if __name__ == "__main__":
    main()
