"""How well cells of simulated germlines are found without learning: a tuned h-minima watershed.

    python tests/experiments/germline.py

The settings are chosen on stacks of the training split, the scores are of the test split: the stacks
that the default model `membranes3d` is scored on.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import reconstruction
from skimage.segmentation import watershed

from cellseg_nb.data.germline import simulate_germline
from cellseg_nb.measure.matching import Matching, match, pool
from cellseg_nb.train.crops import SIMULATED_GERMLINES

EDGES_UM = np.array([0.5, 0.2, 0.2])
MIN_SIZE_PX = 400
SIGMAS_UM = (0.3, 0.4, 0.5)
HEIGHTS = (0.04, 0.06, 0.08)
LEVELS = (0.2, 0.4, 0.6)


def basins(membranes: np.ndarray, sigma_um: float, heights: tuple) -> dict[float, np.ndarray]:
    """Watershed from the h-minima of the smoothed membranes, for several depths h.

    Depth is a part of the distance between the darkest percent and the brightest percent.
    """
    smooth = ndimage.gaussian_filter(membranes.astype(np.float32), sigma_um / EDGES_UM)
    low, high = np.percentile(smooth, (1, 99))
    smooth = (smooth - low) / (high - low)
    found = {}
    for height in heights:
        filled = reconstruction(smooth + height, smooth, method="erosion")
        seeds = ndimage.label(filled - smooth >= height * 0.999)[0]
        found[height] = watershed(smooth, seeds)
    return found


def cells(basins: np.ndarray, membranes: np.ndarray, level: float) -> np.ndarray:
    """Keep what lies in the tissue: where light, smoothed widely, exceeds a part of Otsu's threshold."""
    wide = ndimage.gaussian_filter(np.sqrt(membranes.astype(np.float32)), 1.0 / EDGES_UM)
    low = np.percentile(wide, 1)
    tissue = wide > low + level * (threshold_otsu(wide) - low)
    labels = basins * tissue
    full, kept = (
        np.bincount(basins.ravel()),
        np.bincount(labels.ravel(), minlength=basins.max() + 1),
    )
    keep = (kept >= 0.5 * full) & (kept >= MIN_SIZE_PX)
    keep[0] = False
    return labels * keep[labels]


def scores(seeds: range, sigmas_um: tuple, heights: tuple, levels: tuple, **settings) -> dict:
    """Pooled matching at IoU .5 for every setting."""
    found: dict[tuple, list[Matching]] = {}
    for seed in seeds:
        image, truth = simulate_germline(seed=seed, **settings)
        for sigma_um in sigmas_um:
            for height, regions in basins(image[0], sigma_um, heights).items():
                for level in levels:
                    matching = match(truth, cells(regions, image[0], level), thresholds=(0.5,))
                    found.setdefault((sigma_um, height, level), []).append(matching)
    return {setting: pool(matchings) for setting, matchings in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", type=int, default=3, help="stacks to choose the settings on")
    n_tune = parser.parse_args().tune
    first, _ = SIMULATED_GERMLINES["train"]
    found = scores(range(first, first + n_tune), SIGMAS_UM, HEIGHTS, LEVELS)
    best = max(found, key=lambda setting: found[setting].f1[0])
    sigma_um, height, level = best
    print(f"chosen: sigma {sigma_um} µm, h {height}, tissue {level} of Otsu's threshold")
    print(f"F1@.5 {found[best].f1[0]:.3f} on the {n_tune} training stacks of the choice")
    first, n_test = SIMULATED_GERMLINES["test"]
    tested = scores(range(first, first + n_test), (sigma_um,), (height,), (level,))[best]
    print(f"F1@.5 {tested.f1[0]:.3f} on the {n_test} test stacks, {tested.n_truth} cells")


if __name__ == "__main__":
    main()
