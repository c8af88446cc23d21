"""Tiles of a slide beside the usual script, processor time and memory: `python tests/bench/slide_tiles.py`.

The slide has 10,000 x 10,000 pixels, 40 % of them tissue, and about 55,000 runs of glomeruli: simulated kidney at 2.2 µm per pixel. Once it is a
pyramid of JPEG tiles, as scanners write it, and once the same tiles without smaller levels. Tiles have 256 pixels at a
quarter and at a sixteenth of the resolution.

The usual script is that of many notebooks: all pixels are read with tifffile, the runs written into a full mask by a loop, both padded, shrunk with
OpenCV (INTER_AREA, the mask INTER_NEAREST), reshaped to tiles, and tiles whose saturation says that there is tissue encoded as PNG by OpenCV. Ours
does the same with `create_tiles`, on one thread. Each run has a process of its own, after one on a small slide to warm up, and ends
with files on the disk. The ratio is that of the medians of processor times; memory is the peak beyond what the process held before (Linux: the resettable VmHWM).
"""

import ctypes
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIZE, SMALL, TILE, TURNS, UM = 10_000, 2048, 256, 3, 2.2
THRESHOLD, LEAST_PX = 40, 200 * TILE // 256


def full_mask(text: str, shape: tuple[int, int]) -> np.ndarray:
    """The loop over runs that every notebook has."""
    numbers = text.split()
    starts, lengths = (np.asarray(one, dtype=int) for one in (numbers[0::2], numbers[1::2]))
    starts -= 1
    mask = np.zeros(shape[0] * shape[1], np.uint8)
    for start, length in zip(starts, lengths):
        mask[start : start + length] = 1
    return mask.reshape(shape[::-1]).T


def shrunk(pixels: np.ndarray, reduce: int, how: int) -> np.ndarray:
    """Padded, shrunk and reshaped to tiles."""
    import cv2

    edge = reduce * TILE
    missing = [(-size % edge) for size in pixels.shape[:2]]
    around = [(one // 2, one - one // 2) for one in missing] + [(0, 0)] * (pixels.ndim - 2)
    pixels = np.pad(pixels, around, constant_values=0)
    pixels = cv2.resize(pixels, (pixels.shape[1] // reduce, pixels.shape[0] // reduce), interpolation=how)
    rows, columns = pixels.shape[0] // TILE, pixels.shape[1] // TILE
    pixels = pixels.reshape(rows, TILE, columns, TILE, -1)
    return pixels.transpose(0, 2, 1, 3, 4).reshape(-1, TILE, TILE, pixels.shape[-1])


def usual(slide: Path, table: Path, reduce: int, out: Path) -> None:
    """The usual script."""
    import cv2
    import pandas as pd
    import tifffile

    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True)
    encodings = pd.read_csv(table).set_index("id")
    image = tifffile.imread(slide)
    mask = full_mask(encodings.loc[slide.stem, "encoding"], image.shape[:2])
    images, masks = shrunk(image, reduce, cv2.INTER_AREA), shrunk(mask, reduce, cv2.INTER_NEAREST)
    sums, squares = [], []
    for number, (tile, part) in enumerate(zip(images, masks)):
        saturation = cv2.split(cv2.cvtColor(tile, cv2.COLOR_BGR2HSV))[1]
        if (saturation > THRESHOLD).sum() <= LEAST_PX or tile.sum() <= LEAST_PX:
            continue
        sums.append((tile / 255.0).reshape(-1, 3).mean(0))
        squares.append(((tile / 255.0) ** 2).reshape(-1, 3).mean(0))
        name = f"{slide.stem}_{number}red{reduce}.png"
        (out / "images" / name).write_bytes(cv2.imencode(".png", cv2.cvtColor(tile, cv2.COLOR_RGB2BGR))[1])
        (out / "masks" / name).write_bytes(cv2.imencode(".png", part)[1])
    mean = np.array(sums).mean(0)
    (out / "stats.json").write_text(json.dumps([mean.tolist(), np.sqrt(np.array(squares).mean(0) - mean**2).tolist()]))


def ours(slide: Path, table: Path, reduce: int, out: Path) -> None:
    """This package."""
    from cellseg_nb.data.slide_tiles import create_tiles

    made = create_tiles(slide, table, out, workers=1, size_px=TILE, reduce=reduce)
    assert not made.failures, made.failures


def memory_mb(field: str) -> float:
    """Read VmRSS (now) or VmHWM (peak) of this process; MiB; nan where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return int(re.search(rf"{field}:\s+(\d+)", status.read_text())[1]) / 1024


def measured(name: str, slide: Path, reduce: int) -> dict:
    """Processor seconds and memory of one run in this process."""
    run, table = {"ours": ours, "usual": usual}[name], slide.parent / "labels.csv"
    if name == "usual":
        import cv2

        cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        run(slide.with_name(f"small_{slide.name}"), table, reduce, Path(folder) / "small")
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        before, started = memory_mb("VmRSS"), time.process_time()
        run(slide, table, reduce, Path(folder) / "large")
        seconds = time.process_time() - started
        n_tiles = len([*(Path(folder) / "large/images").iterdir()])
    return {"seconds": seconds, "mb": memory_mb("VmHWM") - before, "tiles": n_tiles}


def write_examples(folder: Path) -> None:
    """Slides with and without levels, small and large, and a table of their runs."""
    from cellseg_nb.data.rle import write_rle_csv
    from cellseg_nb.data.simulate_slides import plan_slide, slide_bands, slide_runs
    from cellseg_nb.data.slides import open_slide, write_pyramid
    from cellseg_nb.data.tissue import tissue_mask

    masks = {}
    for size, before in ((SIZE, ""), (SMALL, "small_")):
        plan = plan_slide((size, size), UM, 7, tissue_share=0.42, n_strokes=0)
        pixels = np.concatenate([*slide_bands(plan)])
        write_pyramid(folder / f"{before}pyramid.tif", pixels, UM)
        write_pyramid(folder / f"{before}plain.tif", pixels, UM, smallest_px=size)
        masks |= {f"{before}{name}": slide_runs(plan) for name in ("pyramid", "plain")}
    write_rle_csv(folder / "labels.csv", masks, "encoding")
    with open_slide(folder / "pyramid.tif", reduce=64) as slide:
        share = tissue_mask(slide.read()).mean()
    print(
        f"{SIZE:,} x {SIZE:,} px, {share:.0%} tissue, {len(masks['pyramid']):,} runs; processor time, median of {TURNS}; "
        "peak memory"
    )


def main():
    with tempfile.TemporaryDirectory() as folder:
        write_examples(Path(folder))
        for slide in ("pyramid", "plain"):
            for reduce in (4, 16):
                found = {"ours": [], "usual": []}
                for _ in range(TURNS):
                    for name, results in found.items():
                        command = [sys.executable, __file__, name, f"{folder}/{slide}.tif", str(reduce)]
                        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                        results.append(json.loads(output.splitlines()[-1]))
                (mine, my_mb), (theirs, their_mb) = (
                    [statistics.median(one[key] for one in results) for key in ("seconds", "mb")]
                    for results in found.values()
                )
                n_tiles = [results[0]["tiles"] for results in found.values()]
                print(
                    f"  {slide:7} reduce {reduce:2}: ours {mine:.2f} s, {my_mb:.0f} MiB, {n_tiles[0]} tiles; usual script {theirs:.2f} s, "
                    f"{their_mb:.0f} MiB, {n_tiles[1]} tiles; {theirs / mine:.1f} times as fast, {my_mb / their_mb:.2f} of the memory"
                )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measured(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()
