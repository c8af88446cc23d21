"""Is the count the same whatever the tiles? `python tests/bench/counting.py [MODEL ...]`.

A simulated picture of 4096 x 4096 is counted in tiles of 512 and of 1024 px, both with the usual overlap of 192 px, of which
84 px are thrown away on either side. Two networks whose answer is known see only their neighbourhood, so their counts may
differ by rounding only. Models (all that come with the package and count, or those that are named) look further, and some
look at the whole tile; their counts must agree within 0.5 %.

`--size 2048` takes a smaller picture. Times are wall-clock seconds of one run each.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.models.bundle import (
    Bundle,
    CountSpecification,
    list_bundles,
    load_bundle,
    read_specification,
)
from cellseg_nb.segment.count import predict_density

TILES, MOST_DIFFERENCE, ROUNDING = (512, 1024), 0.005, 1e-5


def picture(size: int) -> np.ndarray:
    """Four simulated pictures in a mosaic with mirrored copies, so that it is made in seconds."""
    edge = 512
    kinds = [simulate_nuclei((edge, edge), n, seed=n)[0] for n in (20, 60, 120, 200)]
    rng = np.random.default_rng(0)
    rows = [
        [np.rot90(kinds[rng.integers(4)], rng.integers(4)) for _ in range(size // edge)] for _ in range(size // edge)
    ]
    return np.block(rows)


def near_sighted(width: int) -> Bundle:
    """A convolution and a second one with random numbers, which look `width - 1` px far."""
    torch.manual_seed(width)
    layers = (
        torch.nn.Conv2d(1, 4, width, padding=width // 2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 1, width, padding=width // 2),
    )
    about = CountSpecification(name=f"near-sighted {width - 1} px", target={"activation": "softplus"})
    return Bundle(torch.nn.Sequential(*layers).eval(), about, Path())


def compare(bundle: Bundle, image: np.ndarray) -> float:
    """Count in both ways; the relative difference."""
    counts, seconds = [], []
    for tile in TILES:
        started = time.perf_counter()
        counts.append(predict_density(image, bundle, tile).sum(dtype=float))
        seconds.append(time.perf_counter() - started)
    difference = abs(counts[0] / counts[1] - 1)
    text = "  ".join(f"{tile} px: {count:10.2f} ({spent:.0f} s)" for tile, count, spent in zip(TILES, counts, seconds))
    print(f"{bundle.specification.name:20}  {text}  difference {difference:.2e}", flush=True)
    return difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="names or folders of models that count")
    parser.add_argument("--size", type=int, default=4096, help="edge of the picture; px")
    chosen = parser.parse_args()
    image = picture(chosen.size)
    models = chosen.models or [
        name for name in list_bundles() if isinstance(read_specification(name), CountSpecification)
    ]
    for width in (3, 9):
        assert compare(near_sighted(width), image) < ROUNDING
    for model in models:
        assert compare(load_bundle(model), image) < MOST_DIFFERENCE, model


if __name__ == "__main__":
    main()
