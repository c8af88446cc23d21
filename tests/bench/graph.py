"""From a boundary volume to cells, beside elf and scikit-image: `python tests/bench/graph.py`.

The volume is simulated: 31 x 488 x 456 voxels, 3,264 angular cells, blurred and noisy walls. The steps are the same for all:
threshold, distance to the walls, seeds, watershed without pieces below 100 voxels, graph, and a multicut by Kernighan-Lin
(scikit-image has none; there contacts with a mean below one half are joined). elf is called with the same settings; ours adds
fusion moves, as it does by default.

Every run has a process of its own and one thread: it reads the volume, warms up on a small one (so that compilation is not
counted), and is then measured. Ours and elf take turns. Times are the least of the runs: wall time, and processor time, which
suffers less when the machine is busy with something else. Memory is the peak beyond what the process held before, the volume
included in the latter (Linux: the resettable VmHWM).
"""

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

SHAPE, N_CELLS = (31, 488, 456), 3264
THRESHOLD, SIGMA_SEEDS, SIGMA_WEIGHTS, MIN_SIZE = 0.5, 2.0, 2.0, 100


def boundary_volume(shape: tuple[int, ...], n_cells: int, seed: int = 0) -> np.ndarray:
    """Walls between cells whose centres were moved apart twice, with exactly `n_cells` cells."""
    random = np.random.default_rng(seed)
    voxels = np.indices(shape, np.float32).reshape(3, -1).T
    centres = random.uniform(0, shape, (n_cells, 3))
    for _ in range(2):
        nearest = cKDTree(centres).query(voxels[::7])[1]
        counts = np.maximum(np.bincount(nearest, minlength=n_cells), 1)
        sums = [np.bincount(nearest, along, n_cells) for along in voxels[::7].T]
        centres = np.stack(sums, axis=1) / counts[:, None]
    distances = cKDTree(centres).query(voxels, k=2)[0].astype(np.float32)
    gap = (distances[:, 1] - distances[:, 0]).reshape(shape)
    walls = ndimage.gaussian_filter(np.exp(-((gap / 2) ** 2)), 0.8)
    walls += random.normal(0, 0.08, shape).astype(np.float32)
    return np.clip(walls, 0, 1)


def ours(walls: np.ndarray) -> np.ndarray:
    from cellseg_nb.segment.graph import segment_boundaries

    return segment_boundaries(
        walls,
        threshold=THRESHOLD,
        sigma_seeds=SIGMA_SEEDS,
        sigma_weights=SIGMA_WEIGHTS,
        min_size=MIN_SIZE,
    )


def elf(walls: np.ndarray) -> np.ndarray:
    from elf.segmentation import features, multicut, watershed
    from elf.segmentation.features import project_node_labels_to_pixels

    pieces, _ = watershed.distance_transform_watershed(walls, THRESHOLD, SIGMA_SEEDS, SIGMA_WEIGHTS, MIN_SIZE)
    graph = features.compute_rag(pieces, n_threads=1)
    means = features.compute_boundary_mean_and_length(graph, pieces, walls, n_threads=1)[:, 0]
    nodes = multicut.multicut_kernighan_lin(graph, multicut.compute_edge_costs(means))
    return project_node_labels_to_pixels(graph, pieces, nodes, n_threads=1)


def scikit_image(walls: np.ndarray) -> np.ndarray:
    from skimage.feature import peak_local_max
    from skimage.filters import gaussian
    from skimage.graph import cut_threshold, rag_boundary
    from skimage.morphology import remove_small_objects
    from skimage.segmentation import watershed

    depth = gaussian(ndimage.distance_transform_edt(walls <= THRESHOLD), SIGMA_SEEDS)
    places = peak_local_max(depth, min_distance=1, exclude_border=False)
    seeds = np.zeros(walls.shape, np.int32)
    seeds[tuple(places.T)] = np.arange(1, len(places) + 1)
    landscape = gaussian(walls, SIGMA_WEIGHTS)
    pieces = remove_small_objects(watershed(landscape, seeds), max_size=MIN_SIZE - 1)
    pieces = watershed(landscape, pieces)
    return cut_threshold(pieces, rag_boundary(pieces, walls, connectivity=1), 0.5)


def memory_mb(field: str) -> float:
    """Read VmRSS (now) or VmHWM (peak) of this process; MiB; nan where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return int(re.search(rf"{field}:\s+(\d+)", status.read_text())[1]) / 1024


def measure(name: str, volume: str) -> dict:
    """Run one contender in this process."""
    run = {"ours": ours, "elf": elf, "scikit-image": scikit_image}[name]
    run(boundary_volume((12, 60, 60), 30))
    walls = np.load(volume)
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    before = memory_mb("VmRSS")
    wall_start, processor_start = time.perf_counter(), time.process_time()
    labels = run(walls)
    wall, processor = time.perf_counter() - wall_start, time.process_time() - processor_start
    memory = memory_mb("VmHWM") - before
    return {"wall": wall, "processor": processor, "mb": memory, "cells": len(np.unique(labels))}


def in_own_process(name: str, volume: Path) -> dict:
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, name, volume],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | threads,
    )
    return json.loads(done.stdout)


def main():
    shape = " x ".join(map(str, SHAPE))
    print(f"{shape} voxels, {N_CELLS} cells: boundary volume to cells, one thread")
    runs = {"ours": [], "elf": [], "scikit-image": []}
    with tempfile.TemporaryDirectory() as folder:
        volume = Path(folder) / "walls.npy"
        np.save(volume, boundary_volume(SHAPE, N_CELLS))
        for name in ["ours", "elf"] * 5 + ["scikit-image"]:
            runs[name].append(in_own_process(name, volume))
    results = {name: {key: min(one[key] for one in found) for key in found[0]} for name, found in runs.items()}
    best = results["ours"]
    for name, result in results.items():
        ratios = ", ".join(f"{result[key] / best[key]:.2f} x {key}" for key in ("wall", "processor", "mb"))
        print(
            f"  {name:<13}{result['wall']:7.1f} s wall {result['processor']:7.1f} s processor "
            f"{result['mb']:7.0f} MiB beyond the volume  {result['cells']} cells   "
            f"({len(runs[name])} runs; against ours: {ratios})"
        )
    print(f"  cells beside elf's: {abs(best['cells'] / results['elf']['cells'] - 1):.2%} apart")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(*sys.argv[1:])))
    else:
        main()
