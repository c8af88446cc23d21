"""Scores of graph partitioning on two real volumes: `python tests/experiments/volumes.py`.

CELLSEG_DATA names a folder that holds `volumes/`: `fibsem_train` (nerve tissue in the electron microscope, with the membrane
probability of a network and given superpixels) and `ovule` (stained cell walls of a plant in the confocal microscope).

fibsem_train is divided at slice 25. Beta is chosen on one half and scored on the other, and the reverse; each half has a graph
of its own, so that nothing of the scored half is seen. A forest of learned edges is trained on one half and scored on the
other, with beta .5 and without a beta, for several seeds. The best that any method can make of the superpixels gives each the
cell that most of it belongs to. ovule is segmented from the brightness of its walls alone, divided by 255; nothing is learned.
The first table shows what a multicut makes of many maps when nobody names a beta: it is chosen from the volume itself, without
labels (`choose_beta`). Beside it stand beta .5, as it was the default before, and the best of all fixed betas, which nobody
knows without labels. The maps are those of the two volumes and of simulated ones, also made paler, darker and full of holes.
The numbers are variation of information in bits (split + merge) and adapted Rand errors; voxels labelled 0 are left out.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

from cellseg_nb.data.catalog import data_folder
from cellseg_nb.data.germline import packed_walls, simulate_germline, simulated_walls
from cellseg_nb.data.io import read_image, read_labels
from cellseg_nb.measure.overlap import adapted_rand, variation_of_information
from cellseg_nb.segment.blocks import segment_blocks
from cellseg_nb.segment.edges import train_edges, true_cells
from cellseg_nb.segment.graph import segment_boundaries
from cellseg_nb.segment.partition import (
    METHODS,
    choose_beta,
    edge_costs,
    graph_costs,
    label_superpixels,
    partition,
    region_graph,
)
from cellseg_nb.segment.superpixels import as_probability, distance_watershed

BETAS = np.arange(0.02, 0.99, 0.02).round(2)
VOXEL_UM = (0.235, 0.15, 0.15)
GERMLINE_UM = (0.5, 0.2, 0.2)


def bits(truth: np.ndarray, labels: np.ndarray) -> float:
    """Variation of information, split + merge, where the truth is known."""
    return sum(variation_of_information(truth, labels, ignore_labels=(0,)))


class Half:
    """A volume, or a part of one, with a graph of its own."""

    def __init__(self, walls, superpixels, truth, slices=slice(None)):
        self.walls, self.truth = walls[slices], truth[slices]
        numbers = np.unique(superpixels[slices], return_inverse=True)[1] + 1
        self.superpixels = numbers.reshape(self.truth.shape).astype(np.uint32)
        self.graph = region_graph(self.superpixels, self.walls)

    def score(self, costs: np.ndarray, method: str = "multicut") -> float:
        cells = partition(self.graph, costs, method)
        return bits(self.truth, label_superpixels(self.superpixels, cells))

    def best(self) -> float:
        """Of all ways to join these superpixels, the one that follows the truth."""
        return bits(self.truth, label_superpixels(self.superpixels, true_cells(self.superpixels, self.truth)))


def maps(folder: Path) -> Iterator[tuple[str, Half]]:
    """Boundary maps of many kinds, with superpixels and truth."""
    walls = as_probability(read_image(folder / "fibsem_train_membrane_prob.tif", axes="ZYX").pixels)
    truth = read_labels(folder / "fibsem_train_labels.tif")
    given = read_labels(folder / "fibsem_train_superpixels.tif")
    clouds = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=walls.shape), 6)
    holes = np.where(clouds > np.percentile(clouds, 85), 0.4 * walls, walls).astype(np.float32)
    for name, part in (("first half", slice(0, 25)), ("second half", slice(25, 50))):
        yield f"fibsem {name}, given superpixels", Half(walls, given, truth, part)
    for name, values, how in [
        ("fibsem", walls, {}),
        ("fibsem, finer", walls, {"sigma_seeds": 0.5, "min_size": 10}),
        ("fibsem, slice by slice", walls, {"stacked_2d": True}),
        ("fibsem, to the power 3", walls**3, {}),
        ("fibsem, square root", walls**0.5, {"threshold": 0.7}),
        ("fibsem, holes", holes, {}),
        ("fibsem, holes, power .3", holes**0.3, {"threshold": 0.8}),
    ]:
        yield name, Half(values, distance_watershed(values, **how), truth)
    walls = as_probability(read_image(folder / "ovule_image.tif", axes="ZYX").pixels)
    truth = read_labels(folder / "ovule_labels.tif")
    for name, how in (("ovule", {}), ("ovule, finer", {"sigma_seeds": 0.5, "min_size": 20})):
        yield name, Half(walls, distance_watershed(walls, pixel_size_um=VOXEL_UM, **how), truth)
    walls, truth = packed_walls((24, 128, 128), n_cells=120)
    yield "simulated, packed", Half(walls, distance_watershed(walls), truth)
    for seed in (5, 6):
        truth = simulate_germline((16, 128, 160), pixel_size_um=GERMLINE_UM, seed=seed)[1]
        how = {"threshold": 0.3, "sigma_seeds": 1, "min_size": 30, "pixel_size_um": GERMLINE_UM}
        walls = simulated_walls(truth)
        pieces = distance_watershed(walls, mask=truth > 0, **how)
        yield f"simulated germline {seed}", Half(walls, pieces, truth)


def defaults(folder: Path) -> None:
    """What is made of a volume when nobody names a beta."""
    print("no beta is named             VI with .5  with the chosen beta   best of all   best merging")
    rows = []
    for name, volume in maps(folder):
        graph = volume.graph
        start = time.perf_counter()
        beta = choose_beta(graph)
        seconds = time.perf_counter() - start
        rows.append(
            [
                volume.score(graph_costs(graph, beta=0.5)),
                volume.score(graph_costs(graph)),
                min(volume.score(edge_costs(graph.means, beta=b)) for b in BETAS),
                volume.best(),
            ]
        )
        before, after, best, limit = rows[-1]
        print(f"  {name:36} {before:.3f}  {after:.3f} (beta {beta:.2f}, {seconds:.2f} s)  {best:.3f}  {limit:.3f}")
    print("  mean                                 " + "  ".join(f"{one:.3f}" for one in np.mean(rows, axis=0)))


def fibsem(folder: Path) -> None:
    walls = read_image(folder / "fibsem_train_membrane_prob.tif", axes="ZYX").pixels
    truth = read_labels(folder / "fibsem_train_labels.tif")
    given = read_labels(folder / "fibsem_train_superpixels.tif")
    halves = [Half(walls, given, truth, part) for part in (slice(0, 25), slice(25, 50))]
    pairs = [halves, halves[::-1]]
    print(f"fibsem_train, superpixels alone: VI {bits(truth, given):.3f}")
    for method in METHODS:
        scores = [[half.score(graph_costs(half.graph, beta=b), method) for b in BETAS] for half in halves]
        chosen = np.argmin(scores, axis=1)
        first, second = scores[1][chosen[0]], scores[0][chosen[1]]
        print(
            f"  {method:14} VI {(first + second) / 2:.3f}  (beta {BETAS[chosen[0]]:.2f} from slices below 25: "
            f"{first:.3f} on the others; beta {BETAS[chosen[1]]:.2f} from these: {second:.3f})"
        )
    chosen = [half.score(graph_costs(half.graph)) for half in halves]
    print(f"  no beta named  VI {np.mean(chosen):.3f}  ({chosen[0]:.3f} and {chosen[1]:.3f}, without any label)")
    for name, beta in (("beta .5", 0.5), ("no beta named", None)):
        means = []
        for seed in range(5):
            found = []
            for seen, new in pairs:
                model = train_edges(seen.walls, seen.truth, seen.superpixels, seed=seed)
                found.append(new.score(graph_costs(new.graph, model, beta)))
            means.append(np.mean(found))
        spread = f"5 forests: {min(means):.3f} to {max(means):.3f}"
        print(f"  learned edges  VI {np.mean(means):.3f}  ({name}; {spread})")
    best = np.mean([half.best() for half in halves])
    print(f"  best possible merging of these superpixels {best:.3f}")


def ovule(folder: Path) -> None:
    walls = read_image(folder / "ovule_image.tif", axes="ZYX").pixels
    truth = read_labels(folder / "ovule_labels.tif")
    print("ovule, default settings")
    for method in ("watershed", *METHODS):
        start = time.perf_counter()
        labels = segment_boundaries(walls, method=method, pixel_size_um=VOXEL_UM)
        seconds = time.perf_counter() - start
        split, merge = variation_of_information(truth, labels, ignore_labels=(0,))
        print(
            f"  {method:14} adapted Rand error {adapted_rand(truth, labels)[0]:.3f}, VI split {split:.3f}, "
            f"merge {merge:.3f}, {labels.max()} cells ({len(np.unique(truth)) - 1} true), {seconds:.1f} s"
        )


def blocks(folder: Path) -> None:
    """How far the result in blocks is from that of the whole volume."""
    print("in blocks beside the whole volume, VI between the two")
    fibsem_walls = read_image(folder / "fibsem_train_membrane_prob.tif", axes="ZYX").pixels
    ovule_walls = read_image(folder / "ovule_image.tif", axes="ZYX").pixels
    for name, walls, size, block_px, margin_px in [
        ("ovule", ovule_walls, VOXEL_UM, (32, 64, 64), 32),
        ("fibsem_train", fibsem_walls, None, (25, 50, 100), 32),
    ]:
        whole = segment_boundaries(walls, pixel_size_um=size)
        parts = segment_blocks(walls, block_px=block_px, margin_px=margin_px, pixel_size_um=size)
        split, merge = variation_of_information(whole, parts)
        print(
            f"  {name:14} {split + merge:.4f} bits; {whole.max()} cells, in blocks of "
            f"{'x'.join(map(str, block_px))} with margins of {margin_px}: {parts.max()}"
        )


def main() -> None:
    folder = (data_folder() or Path()) / "volumes"
    if not folder.is_dir():
        sys.exit("CELLSEG_DATA must name a folder that holds volumes/")
    defaults(folder)
    fibsem(folder)
    ovule(folder)
    blocks(folder)


if __name__ == "__main__":
    main()
