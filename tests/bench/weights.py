"""Border weights beside one distance transform per object, and training crops beside step-by-step ones.

`python tests/bench/weights.py`. Every contender of the border weights runs in a process of its own: it makes the label
image, warms up on a small one (so that compilation is not counted), and is then measured. Times are medians over the
runs: wall time, and processor time, which suffers less when the machine is busy with something else. Memory is the peak
beyond what the process held before, inputs included in the latter (Linux: the resettable VmHWM), also counted in float
maps, 4 bytes a pixel.

The peer does what the formula says: a distance transform per object, all kept, sorted. In 3D all maps of 600 cells would
fill 2.3 GB, so there the peer keeps only the two smallest distances as it goes, which is quicker than sorting.
"""

import ctypes
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.data.targets import border_weights
from cellseg_nb.data.transforms import Augmentation, augment, normalise_percentile

W0, SIGMA_PX, PIXEL_SIZE = 10.0, 5.0, {2: (1.0, 1.0), 3: (2.0, 1.0, 1.0)}


def nuclei(shape: tuple[int, ...]) -> np.ndarray:
    """Simulated nuclei in 2D, 125 in 512 x 512; balls cut by their neighbours in 3D, 600 in 24 x 200 x 200."""
    if len(shape) == 2:
        return simulate_nuclei(shape, n_nuclei=int(np.prod(shape) / 512**2 * 125), overlap=0.5, seed=0)[1]
    random = np.random.default_rng(0)
    places = random.choice(np.prod(shape), int(np.prod(shape) * 600 / 960_000), replace=False)
    voxels = np.indices(shape).reshape(3, -1).T * PIXEL_SIZE[3]
    distances, nearest = cKDTree(voxels[places]).query(voxels)
    return np.where(distances < 9, nearest + 1, 0).reshape(shape).astype(np.uint16)


def ours(labels: np.ndarray) -> np.ndarray:
    return border_weights(labels, W0, SIGMA_PX, PIXEL_SIZE[labels.ndim])


def peer(labels: np.ndarray) -> np.ndarray:
    """One full distance transform per object; then the two smallest distances of every pixel."""
    ids = np.unique(labels[labels > 0])
    transforms = (ndimage.distance_transform_edt(labels != number, sampling=PIXEL_SIZE[labels.ndim]) for number in ids)
    if labels.ndim == 2:
        first, second = np.sort(np.stack([one.astype(np.float32) for one in transforms]), axis=0)[:2]
    else:
        first, second = np.full((2, *labels.shape), np.inf)
        for distance in transforms:
            second = np.minimum(second, np.maximum(first, distance))
            first = np.minimum(first, distance)
    border = W0 * np.exp(-((first + second) ** 2) / (2 * SIGMA_PX**2))
    return (1 + border * (labels == 0)).astype(np.float32)


def memory_mb(field: str) -> float:
    """Read VmRSS (now) or VmHWM (peak) of this process; MiB; nan where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return int(re.search(rf"{field}:\s+(\d+)", status.read_text())[1]) / 1024


def measure(name: str, shape: tuple[int, ...], repeats: int, saved: str) -> dict:
    """Run one contender in this process, and save its weights."""
    run = {"ours": ours, "peer": peer}[name]
    run(nuclei(tuple(size // 4 for size in shape)))
    labels = nuclei(shape)
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    before = memory_mb("VmRSS")
    wall, processor, weights = [], [], None
    for _ in range(repeats):
        del weights
        wall_start, processor_start = time.perf_counter(), time.process_time()
        weights = run(labels)
        wall.append(time.perf_counter() - wall_start)
        processor.append(time.process_time() - processor_start)
    peak = memory_mb("VmHWM") - before
    np.save(saved, weights)
    return {
        "wall": float(np.median(wall)),
        "processor": float(np.median(processor)),
        "mb": peak,
        "objects": len(np.unique(labels)) - 1,
    }


def compare(shape: tuple[int, ...], runs: dict[str, int]) -> None:
    """Print peer, ours, ratios, memory and the largest difference of the weights."""
    results, weights = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, repeats in runs.items():
            saved = f"{folder}/{name}.npy"
            command = [sys.executable, __file__, name, json.dumps(shape), str(repeats), saved]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results[name], weights[name] = json.loads(done.stdout), np.load(saved)
    best, map_mb = results["ours"], np.prod(shape) * 4 / 2**20
    print(f"border weights, {' x '.join(map(str, shape))} pixels, {best['objects']} objects")
    for name, result in results.items():
        ratios = ", ".join(f"{result[key] / best[key]:.1f} x {key}" for key in ("wall", "processor", "mb"))
        print(
            f"  {name:<5}{result['wall']:9.4f} s wall {result['processor']:9.4f} s processor {result['mb']:8.1f} MiB ="
            f" {result['mb'] / map_mb:.1f} float maps   ({runs[name]} runs; against ours: {ratios})"
        )
    print(f"  largest difference of the weights: {abs(weights['ours'] - weights['peer']).max():.1e}")


def step_by_step(image: np.ndarray, labels: np.ndarray, size: int, rng: np.random.Generator) -> tuple:
    """The usual chain: cut, enlarge, turn, shear, bend, each an interpolation of its own."""
    edge = round(size / np.exp(rng.uniform(*np.log((0.7, 1.4)))))
    y, x = rng.integers(image.shape[0] - edge), rng.integers(image.shape[1] - edge)
    angle, lean = rng.uniform(-180, 180), np.tan(np.deg2rad(rng.uniform(-15, 15)))
    bend = [ndimage.gaussian_filter(rng.uniform(-1, 1, (size, size)), 16) * 500 for _ in range(2)]
    places = np.indices((size, size)) + bend
    varied = []
    for array, order in ((image, 1), (labels, 0)):
        array = array[y : y + edge, x : x + edge]
        array = ndimage.zoom(array, size / edge, order=order, grid_mode=True, mode="nearest")
        array = ndimage.rotate(array, angle, reshape=False, order=order, mode="reflect")
        array = ndimage.affine_transform(array, [[1, 0], [lean, 1]], order=order, mode="reflect")
        varied.append(ndimage.map_coordinates(array, places, order=order, mode="reflect"))
    return tuple(varied)


def crops(size: int = 192, repeats: int = 100) -> None:
    """Print crops per second of processor time, a crop of each contender in turn."""
    off = dict(gamma=(1, 1), brightness=0, contrast=(1, 1), blur_px=0, noise=0)
    bent = dict(rotation_degrees=180, shear_degrees=15, elastic_px=8)
    image, labels = simulate_nuclei((512, 512), n_nuclei=125, seed=0)
    image = normalise_percentile(image)
    contenders = {
        "cut, enlarged, flipped, turned by 90°": Augmentation(**off),
        "+ any angle, shear, elastic: one interpolation": Augmentation(**off, **bent),
        "+ brightness, illumination, blur, noise": Augmentation(**bent, illumination=0.4),
        "geometry step by step with SciPy (peer)": None,
    }
    seconds = {name: [] for name in contenders}
    for seed in range(repeats + 1):
        for name, settings in contenders.items():
            rng, start = np.random.default_rng(seed), time.process_time()
            if settings is None:
                step_by_step(image, labels, size, rng)
            else:
                augment(image, labels, size, settings, rng)
            seconds[name].append(time.process_time() - start)
    print(f"training crops, {size} x {size} pixels, one core")
    for name, times in seconds.items():
        each = float(np.mean(times[1:]))
        print(f"  {name:<48}{1 / each:7.0f} crops per second {1000 * each:7.2f} ms each")


def main():
    compare((512, 512), {"peer": 3, "ours": 9})
    compare((24, 200, 200), {"peer": 1, "ours": 5})
    crops()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], tuple(json.loads(sys.argv[2])), int(sys.argv[3]), sys.argv[4])))
    else:
        main()
