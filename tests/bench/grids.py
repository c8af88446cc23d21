"""Numbers of 60 x 60 marks in 3000 x 3000 px beside the usual way: processor time, and how many numbers are right.

`python tests/bench/grids.py`. The usual way, as people write it: the mask is turned by 41 angles from -20 to 20 degrees and taken apart;
each time k-means (scikit-learn) puts the rows' and columns' coordinates of the marks into 60 groups; the angle with the tightest
groups is kept. It cannot do without the number of rows and columns, and takes specks for marks. Ours gets the same mask and numbers.
Both run once, one after the other, in one process and one thread, on an easy picture (nothing missing, no specks, turned by a whole
degree) and on an everyday one.
"""

import time

import numpy as np
from scipy import ndimage
from sklearn.cluster import KMeans

from cellseg_nb.data.simulate_grids import draw_marks, simulate_grid
from cellseg_nb.segment.grid import register_mask

ROWS, ANGLES = 60, np.linspace(-20, 20, 41)
PICTURES = {
    "easy": dict(angle_deg=7.0, jitter=0.05),
    "everyday: 20 % missing, 500 specks": dict(angle_deg=7.4, jitter=0.15, missing=0.2, specks=500),
}


def grouped(values: np.ndarray) -> KMeans:
    """Groups of coordinates; with starts at even distances, which serve far better than scikit-learn's own."""
    starts = np.linspace(values.min(), values.max(), ROWS)
    return KMeans(ROWS, init=starts[:, None], n_init=1).fit(values[:, None])


def usual(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(y, x) of the marks and their numbers, by rotation and k-means."""
    best = (np.inf,)
    for angle in ANGLES:
        turned = ndimage.rotate(mask.astype(np.uint8), angle, reshape=True, order=0)
        labels, n = ndimage.label(turned)
        centres = np.array(ndimage.center_of_mass(turned, labels, range(1, n + 1)))
        groups = [grouped(one) for one in centres.T]
        tightness = sum(group.inertia_ for group in groups)
        if tightness < best[0]:
            best = (tightness, angle, turned.shape, centres, groups)
    _, angle, shape, centres, groups = best
    row, col = (np.argsort(np.argsort(group.cluster_centers_[:, 0]))[group.labels_] for group in groups)
    turn = np.radians(angle)
    back = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    at = (centres - (np.array(shape) - 1) / 2) @ back.T + (np.array(mask.shape) - 1) / 2
    return at, row * ROWS + col + 1


def share_right(at, ids, sample) -> float:
    """Part of the true marks whose nearest numbered point, at most 5 px away, has their number."""
    from scipy.spatial import cKDTree

    mark = sample.row > 0
    apart, nearest = cKDTree(at).query(sample.points[mark])
    return float(((ids[nearest] == sample.ids[mark]) & (apart < 5)).mean())


def main() -> None:
    for name, how in PICTURES.items():
        sample = simulate_grid(ROWS, ROWS, seed=1, **how)
        mask = draw_marks(sample)[1]
        seconds, right = {}, {}
        started = time.process_time()
        found = register_mask(mask, ROWS, ROWS)[0]
        seconds["ours"] = time.process_time() - started
        marks = found.marks[found.marks.status != "missing"]
        right["ours"] = share_right(marks[["y", "x"]].to_numpy(), marks.id.to_numpy(), sample)
        started = time.process_time()
        at, ids = usual(mask)
        seconds["usual"] = time.process_time() - started
        right["usual"] = share_right(at, ids, sample)
        print(
            f"{name}: ours {seconds['ours']:.2f} s, {right['ours']:.2%} of the marks right; usual way {seconds['usual']:.1f} s, "
            f"{right['usual']:.2%} right; {seconds['usual'] / seconds['ours']:.0f} times as long",
            flush=True,
        )
        assert seconds["usual"] > 10 * seconds["ours"] and right["ours"] == 1


if __name__ == "__main__":
    main()
