"""Time and memory of matching beside StarDist and an `np.unique` pair table: `python tests/bench/matching.py`.

Every contender runs in a process of its own: it makes the two label images, warms up on a small pair (so that
compilation is not counted), and is then measured. Times are medians over the runs: wall time, and processor time, which
suffers less when the machine is busy with something else. Memory is the peak beyond what the process held before, inputs
included in the latter (Linux: the resettable VmHWM). Free memory is handed back first, otherwise a contender that
reuses it would seem to need none.
"""

import ctypes
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from cellseg_nb.measure.matching import THRESHOLDS, match


def label_image(size: int, rows: int, columns: int, seed: int) -> np.ndarray:
    """Draw a grid of discs with random centres and radii; one id each."""
    random = np.random.default_rng(seed)
    labels = np.zeros((size, size), np.int32)
    height, width = size // rows, size // columns
    y, x = np.ogrid[:height, :width]
    for number in range(rows * columns):
        top, left = number // columns * height, number % columns * width
        centre = np.array([height, width]) / 2 + random.normal(0, 1.5, 2)
        radius = random.uniform(0.3, 0.48) * min(height, width)
        inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2
        labels[top : top + height, left : left + width][inside] = number + 1
    return labels


def label_pair(size: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Make a truth, and a prediction that is the truth shifted by 1 to 4 pixels, with 3 % of the objects lost."""
    truth = label_image(size, rows, columns, seed=0)
    pred = np.roll(truth, (2, 1), axis=(0, 1))
    pred[size // 2 :] = np.roll(truth, (4, 3), axis=(0, 1))[size // 2 :]
    pred[pred % 33 == 0] = 0
    return truth, pred


def ours(truth: np.ndarray, pred: np.ndarray) -> list[int]:
    return match(truth, pred, THRESHOLDS).tp.tolist()


def stardist(truth: np.ndarray, pred: np.ndarray) -> list[int]:
    from stardist.matching import matching

    return [int(result.tp) for result in matching(truth, pred, thresh=THRESHOLDS)]


def unique_table(truth: np.ndarray, pred: np.ndarray) -> list[int]:
    """The usual sparse way: sort both ids of every pixel. (At t > .5 the hits can be counted directly.)"""
    base = int(pred.max()) + 1
    pairs, counts = np.unique(truth.astype(np.int64) * base + pred, return_counts=True)
    truth_ids, pred_ids = pairs // base, pairs % base
    truth_areas, pred_areas = np.bincount(truth_ids, counts), np.bincount(pred_ids, counts)
    unions = truth_areas[truth_ids] + pred_areas[pred_ids] - counts
    ious = counts / unions * ((truth_ids > 0) & (pred_ids > 0))
    return [int((ious >= threshold).sum()) for threshold in THRESHOLDS]


def memory_mb(field: str) -> float:
    """Read VmRSS (now) or VmHWM (peak) of this process; MiB; nan where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return int(re.search(rf"{field}:\s+(\d+)", status.read_text())[1]) / 1024


def measure(name: str, size: int, rows: int, columns: int, repeats: int) -> dict:
    """Run one contender in this process."""
    run = {"ours": ours, "stardist": stardist, "unique": unique_table}[name]
    run(*label_pair(512, 20, 20))
    truth, pred = label_pair(size, rows, columns)
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    before = memory_mb("VmRSS")
    wall, processor = [], []
    for _ in range(repeats):
        wall_start, processor_start = time.perf_counter(), time.process_time()
        hits = run(truth, pred)
        wall.append(time.perf_counter() - wall_start)
        processor.append(time.process_time() - processor_start)
    peak = memory_mb("VmHWM") - before
    return {"wall": float(np.median(wall)), "processor": float(np.median(processor)), "mb": peak, "hits": hits}


def in_own_process(*arguments) -> dict:
    command = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main():
    print("4096 x 4096 pixels, 8,000 objects, 10 thresholds")
    runs = {"ours": 9, "unique": 3, "stardist": 1}
    results = {name: in_own_process(name, 4096, 80, 100, repeats) for name, repeats in runs.items()}
    best = results["ours"]
    for name, result in results.items():
        ratios = ", ".join(f"{result[key] / best[key]:.1f} x {key}" for key in ("wall", "processor", "mb"))
        print(
            f"  {name:<9}{result['wall']:8.3f} s wall  {result['processor']:8.3f} s processor"
            f"  {result['mb']:8.1f} MiB beyond the inputs   ({runs[name]} runs; against ours: {ratios})"
        )
    for name in ("unique", "stardist"):
        agree = best["hits"] == results[name]["hits"]
        print(f"  hits as {name}: {'equal' if agree else results[name]['hits']}")
    print("8192 x 8192 pixels, 32,000 objects, 10 thresholds")
    large = in_own_process("ours", 8192, 160, 200, 3)
    print(f"  ours     {large['wall']:8.3f} s wall  {large['mb']:8.1f} MiB beyond the inputs (512 MiB)")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], *map(int, sys.argv[2:]))))
    else:
        main()
