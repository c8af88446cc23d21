"""Heat maps from points beside a Gaussian filter over a picture of dots: `python tests/bench/heatmaps.py`.

4096 x 4096 px, 5,000 points, sigma 3 px. The usual way makes a picture with a 1 at each point and filters it, once per class.
Times are medians over the runs, of wall time and of processor time; compilation is not counted. The largest difference is
that of the pixels farther than 4 sigma from the border: at the border the filter loses what lies outside, and the heat map
does not. Points are whole pixels here, because a picture of dots cannot hold others.
"""

import time

import numpy as np
from scipy import ndimage

from cellseg_nb.data.heatmaps import density_map

EDGE_PX, N_POINTS, SIGMA_PX = 4096, 5000, 3.0


def ours(points: np.ndarray) -> np.ndarray:
    return density_map(points, (EDGE_PX, EDGE_PX), SIGMA_PX)


def filtered(points: np.ndarray) -> np.ndarray:
    """A Gaussian filter over a dense picture of dots."""
    dots = np.zeros((EDGE_PX, EDGE_PX), np.float32)
    np.add.at(dots, tuple(points.T), 1)
    return ndimage.gaussian_filter(dots, SIGMA_PX, mode="constant")


def measure(make, points: np.ndarray, runs: int) -> tuple[np.ndarray, float, float]:
    """The map, and the medians of wall and processor time; s."""
    make(points[:10])
    wall, processor = [], []
    for _ in range(runs):
        started, spent = time.perf_counter(), time.process_time()
        heat = make(points)
        wall.append(time.perf_counter() - started)
        processor.append(time.process_time() - spent)
    return heat, float(np.median(wall)), float(np.median(processor))


def main() -> None:
    points = np.random.default_rng(0).integers(0, EDGE_PX, (N_POINTS, 2))
    print(f"{EDGE_PX} x {EDGE_PX} px, {N_POINTS:,} points, sigma {SIGMA_PX:g} px")
    theirs, their_wall, their_processor = measure(filtered, points, 5)
    heat, wall, processor = measure(ours, points, 15)
    inner = (slice(int(4 * SIGMA_PX) + 1, -int(4 * SIGMA_PX) - 1),) * 2
    difference = float(np.abs(heat - theirs)[inner].max())
    print(
        f"  filter over dots  {their_wall:8.4f} s wall  {their_processor:8.4f} s processor   sum {theirs.sum(dtype=float):.2f}"
    )
    print(f"  density_map       {wall:8.4f} s wall  {processor:8.4f} s processor   sum {heat.sum(dtype=float):.2f}")
    print(f"  {their_wall / wall:.0f} x faster by wall time, {their_processor / processor:.0f} x by processor time")
    print(
        f"  largest difference away from the border {difference:.1e}; a lone cell reaches {1 / (2 * np.pi * SIGMA_PX**2):.1e}"
    )


if __name__ == "__main__":
    main()
