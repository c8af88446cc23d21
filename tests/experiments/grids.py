"""Are marks numbered right, however the grid is turned, and whatever is missing?

`python tests/experiments/grids.py [CASE ...] [--part .2] [--overlay FILE]` prints, for each kind of simulated grid, in how many
pictures all marks got their number, how many were refused, in how many a mark got a wrong number without a word, and processor
seconds per picture. Every right size is followed by a wrong one for the same points, which must be refused. Colonies of real plates
(`CELLSEG_DATA`, folder grids) come last; `--overlay` writes them as a picture to look at. Without names all cases are run, in about
two minutes on one core; `--part` runs that part of each.

Where the first row is gone whole, a grid of one row less fits the points as well as can be: that wrong size alone is "taken".

"limit" stands for grids with normally distributed jitter: marks that lie closer to the place of a neighbour than to their own cannot
be numbered by anybody, and the second number is the part of the marks of which this is not so.
"""

import os
import time
from argparse import ArgumentParser
from pathlib import Path

import numpy as np

from cellseg_nb.data.simulate_grids import grid_nodes, simulate_grid
from cellseg_nb.segment.grid import register_mask, register_points
from cellseg_nb.segment.lattice import GridRefused

USUAL = dict(missing=0.2, jitter=0.15, specks=500, turn=10)
CASES = {  # name: pictures, what differs from the usual
    "20 % missing": (50, {}),
    "turned by up to 44 degrees": (50, dict(turn=44)),
    "60 % missing": (50, dict(missing=0.6)),
    "2,000 specks": (50, dict(specks=2000)),
    "a row and a column gone": (50, dict(gone=True)),
    "blank disc of radius 15": (50, dict(blank_radius=15)),
    "80 % missing": (20, dict(missing=0.8)),
    "80 % missing, no specks": (20, dict(missing=0.8, specks=0)),
    "5 % shear": (20, dict(shear=0.05)),
    "200 x 200": (20, dict(rows=200, cols=200)),
    "plates 8 x 12": (50, dict(rows=8, cols=12, shape=(800, 1200), jitter=0.03, specks=5)),
    "plates 8 x 12, half of the wells": (
        50,
        dict(rows=8, cols=12, shape=(800, 1200), jitter=0.03, specks=5, missing=0.5),
    ),
    "85 % missing": (20, dict(missing=0.85)),
    "90 % missing": (20, dict(missing=0.9)),
    "90 % missing, no specks": (20, dict(missing=0.9, specks=0)),
    "8 % shear": (20, dict(shear=0.08, turn=40)),
    "pitch 1 : 1.5": (20, dict(rows=40, aspect=1.5)),
    "pitch 1 : 3": (20, dict(rows=20, aspect=3.0)),
    "jitter 20 %": (20, dict(jitter=0.2)),
    "jitter 30 %": (20, dict(jitter=0.3)),
    "everything at once": (
        20,
        dict(jitter=0.2, shear=0.05, aspect=1.5, rows=40, turn=40, missing=0.6, specks=1000, blank_radius=8),
    ),
    "100 marks outside": (20, dict(outside=100)),
    "border row gone": (20, dict(missing_rows=(1,))),
}
GAUSSIAN = (0.05, 0.1, 0.15)


def simulated(seed: int, turn: float = 10, gone: bool = False, **how):
    """A grid turned by a random angle; `gone` takes a row and a column inside."""
    rng = np.random.default_rng(seed + 1000)
    how = {"rows": 60, "cols": 60, "angle_deg": rng.uniform(-turn, turn)} | how
    if gone:
        how |= {
            "missing_rows": (int(rng.integers(2, how["rows"])),),
            "missing_cols": (int(rng.integers(2, how["cols"])),),
        }
    return simulate_grid(seed=seed, **how), how


def wrong_size(seed: int, rows: int, cols: int) -> tuple[int, int]:
    """One row or column too many or too few, both, or exchanged."""
    rng = np.random.default_rng(seed)
    sizes = [
        (rows + 1, cols),
        (rows - 1, cols),
        (rows, cols + 1),
        (rows, cols - 1),
        (rows + 1, cols - 1),
        (rows - 2, cols),
        (rows + 3, cols + 3),
        (rows // 2, cols * 2),
    ] + [(cols, rows)] * (rows != cols)
    return sizes[rng.integers(len(sizes))]


def outcome(sample, rows, cols) -> tuple[str, float, str]:
    """right, refused, lost (a mark without a number) or WRONG; processor seconds; the reason of a refusal."""
    started = time.process_time()
    try:
        ids = register_points(sample.points, rows, cols).ids
    except GridRefused as refused:
        return "refused", time.process_time() - started, str(refused)
    seconds, mark = time.process_time() - started, sample.row > 0
    if (rows, cols) != (sample.rows, sample.cols) or ((ids != sample.ids) & (ids > 0) & mark).any():
        return "WRONG", seconds, ""
    return ("right" if (ids == sample.ids)[mark].all() else "lost"), seconds, ""


def run_case(name, n, how) -> None:
    found, wrong, seconds, reason = [], [], 0.0, ""
    for seed in range(n):
        sample, _ = simulated(seed, **(USUAL | how))
        state, spent, why = outcome(sample, sample.rows, sample.cols)
        found.append(state)
        seconds, reason = seconds + spent, reason or why
        wrong.append(outcome(sample, *wrong_size(seed, sample.rows, sample.cols))[0])
    print(
        f"{name:34}{found.count('right'):4} right {found.count('refused'):3} refused {found.count('lost'):3} lost "
        f"{found.count('WRONG'):3} wrong of {n:3}   {seconds / n:.3f} s   wrong size: {wrong.count('refused'):3} refused "
        f"{wrong.count('WRONG'):3} taken",
        flush=True,
    )
    if reason:
        print(f"    first refusal: {reason[:180]}")


def run_gaussian(sigma, n) -> None:
    right, possible, refused = [], [], 0
    for seed in range(n):
        sample, how = simulated(seed, **(USUAL | dict(jitter=sigma, gaussian=True)))
        mark = sample.row > 0
        places, steps = grid_nodes(60, 60, angle_deg=how["angle_deg"])
        apart = (sample.points - places[sample.row - 1, sample.col - 1]) @ np.linalg.inv(steps)
        possible.append((abs(apart[mark]).max(axis=1) < 0.5).mean())
        try:
            right.append((register_points(sample.points, 60, 60).ids == sample.ids)[mark].mean())
        except GridRefused:
            refused += 1
    print(
        f"normal jitter {sigma:4}   marks right {np.mean(right):.5f}   limit {np.mean(possible):.5f}   refused {refused} of {n}"
    )


def plate_mask(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A photograph, and what is brighter than its surroundings (Otsu's threshold) and no thin line."""
    from scipy import ndimage
    from skimage.filters import threshold_otsu
    from skimage.morphology import disk

    from cellseg_nb.data.io import read_image

    picture = read_image(path).pixels
    gray = ndimage.gaussian_filter(picture.astype(np.float32).mean(axis=-1), 1)
    above = gray - ndimage.gaussian_filter(gray, 15)
    return picture, ndimage.binary_opening(above > threshold_otsu(above), disk(2))


def run_plates(folder: Path, overlay: Path | None) -> None:
    from cellseg_nb.segment.grid_files import show_registration, summary_text

    picture, mask = plate_mask(folder / "colonies_a.jpg")
    started = time.process_time()
    found, _ = register_mask(mask, 32, 48)
    print(f"colonies_a.jpg, {time.process_time() - started:.2f} s from mask to numbers:\n{summary_text(found.summary)}")
    estimated = register_mask(mask)[0]
    print(f"estimated size: {estimated.rows} x {estimated.cols}")
    if overlay:
        show_registration(picture, found, every=1, inches=14).savefig(overlay)
    for size in ((32, 47), (33, 48), (31, 48), (48, 32)):
        try:
            register_mask(mask, *size)
            print(f"WRONG: {size} was taken")
        except GridRefused as refused:
            print(f"{size[0]} x {size[1]} refused: {str(refused)[:110]}")
    mask = plate_mask(folder / "yeast_colonies.jpg")[1]
    for size in ((None, None), (32, 48), (8, 12)):
        try:
            register_mask(mask, *size)
            print(f"WRONG: yeast_colonies.jpg was taken for {size}")
        except GridRefused as refused:
            print(f"yeast_colonies.jpg, {size[0]} x {size[1]} refused: {str(refused)[:120]}")


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}, gaussian, plates")
    parser.add_argument("--part", type=float, default=1.0, help="part of the pictures of each case")
    parser.add_argument("--overlay", type=Path, help="PNG of the numbered colonies")
    options = parser.parse_args()
    for name, (n, how) in CASES.items():
        if not options.cases or name in options.cases:
            run_case(name, max(1, round(n * options.part)), how)
    if not options.cases or "gaussian" in options.cases:
        for sigma in GAUSSIAN:
            run_gaussian(sigma, max(1, round(20 * options.part)))
    if not options.cases or "plates" in options.cases:
        if "CELLSEG_DATA" in os.environ:
            run_plates(Path(os.environ["CELLSEG_DATA"]) / "grids", options.overlay)
        else:
            print("plates: skipped, CELLSEG_DATA is not set")


if __name__ == "__main__":
    main()
