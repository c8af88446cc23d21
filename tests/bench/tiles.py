"""Tiled prediction beside the plain forward pass and MONAI, and memory: `python tests/bench/tiles.py`.

The network is a small U-Net on one channel, the one that is shipped for nuclei; the picture is 1024 x 1024, the tiles
256 x 256 and 512 x 512 (the package takes 1024 where nobody says otherwise). The plain pass runs the network over the
same windows, one after the other, and keeps nothing; so a ratio of 1 means that cutting and blending cost nothing.
MONAI's sliding_window_inference (constant blending, its fastest) runs over its own windows; its time is compared with
the plain pass over those. All are measured in turns in one process and one thread, after warm-up; the ratio is the
median over the turns of processor times, which suffer less when the machine is busy. (Of several threads, those that
wait for the others would be counted as working.)

Memory is the peak beyond what the process held before `predict` (network, picture; Linux: the resettable VmHWM), for
pictures of 2048 x 2048 and 8192 x 8192, each in a process of its own.
"""

import ctypes
import json
import re
import subprocess
import sys
import time
import warnings
from itertools import product
from pathlib import Path

import numpy as np
import torch

from cellseg_nb.data.tiles import plan_tiles
from cellseg_nb.models.bundle import Bundle, Specification
from cellseg_nb.models.zoo import build_network
from cellseg_nb.segment.predict import predict, predict_tiles

SIZE, TILES, TURNS = 1024, (256, 512), 9
OUTPUTS = ("foreground", "boundary", "distance")


def processor_seconds(run) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def plain(network, image, tiles):
    """The network over the same windows, and nothing else."""
    with torch.inference_mode():
        for y, x in tiles:
            window = torch.from_numpy(np.ascontiguousarray(image[:, y, x]))[None]
            network(window.contiguous(memory_format=torch.channels_last)).sigmoid_()


def monai_tiles(tile_px: int, overlap: float):
    """Windows of MONAI's sliding window inference."""
    from monai.data.utils import dense_patch_slices

    stride = int(tile_px * (1 - overlap))
    return dense_patch_slices((SIZE, SIZE), (tile_px, tile_px), (stride, stride))


def compare(network, image, tile_px: int, overlap: float) -> None:
    """Print times for one size of tiles and one overlap."""
    from monai.inferers import sliding_window_inference

    overlap_px = int(tile_px * overlap)
    batch = torch.from_numpy(image)[None].contiguous(memory_format=torch.channels_last)
    tiles = [tile.read for tile in plan_tiles((SIZE, SIZE), tile_px, overlap_px, 32)]
    theirs = monai_tiles(tile_px, overlap)

    def peer():
        with torch.inference_mode():
            sliding_window_inference(batch, tile_px, 1, network, overlap=overlap).sigmoid_()

    runs = {
        "ours": lambda: predict_tiles(image, network, tile_px, overlap_px, 32, "cpu"),
        "plain, our windows": lambda: plain(network, image, tiles),
        "monai": peer,
        "plain, their windows": lambda: plain(network, image, theirs),
    }
    seconds = np.array([[processor_seconds(run) for run in runs.values()] for _ in range(TURNS)])
    ours, monai = np.median(seconds[:, 0] / seconds[:, 1]), np.median(seconds[:, 2] / seconds[:, 3])
    times = "  ".join(f"{name} {value:.2f} s" for name, value in zip(runs, np.median(seconds, axis=0)))
    print(f"  tile {tile_px}, overlap {overlap:<4} {len(tiles)} and {len(theirs)} windows: {times}")
    print(f"                          ratio to the plain pass: ours {ours:.3f}, monai {monai:.3f}")


def memory_mb(field: str) -> float:
    """Read VmRSS (now) or VmHWM (peak) of this process; MiB; nan where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return int(re.search(rf"{field}:\s+(\d+)", status.read_text())[1]) / 1024


def peak(size: int) -> dict:
    """Peak memory of `predict` in this process; two enlargements, three maps, a network of one layer."""
    network = torch.nn.Conv2d(1, 3, 3, padding=1)
    specification = Specification(name="one layer", outputs=OUTPUTS, scales=(1.0, 1.5))
    bundle = Bundle(network, specification, Path())
    image = np.random.default_rng(0).integers(0, 4000, (size, size), np.uint16)
    predict(image[:600, :600], bundle, 512, device="cpu", precision="float32")
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    before = memory_mb("VmRSS")
    maps = predict(image, bundle, 512, device="cpu", precision="float32")
    return {"mb": memory_mb("VmHWM") - before, "output_mb": maps.nbytes / 2**20}


def main():
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = build_network(decoder_channels=(64, 32, 16, 8, 8)).eval().to(memory_format=torch.channels_last)
    image = np.random.default_rng(0).normal(size=(1, SIZE, SIZE)).astype(np.float32)
    plain(network, image, [tile.read for tile in plan_tiles((SIZE, SIZE), 256, 0, 32)][:3])
    print(f"{SIZE} x {SIZE} pixels in tiles, processor time, median of {TURNS}")
    for tile_px, overlap in product(TILES, (0, 0.25, 0.5)):
        compare(network, image, tile_px, overlap)
    print("memory beyond picture and network: three maps, predicted at two enlargements")
    results = {}
    for size in (2048, 8192):
        command = [sys.executable, __file__, str(size)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results[size] = result = json.loads(output)
        print(f"  {size} x {size}: peak {result['mb']:.0f} MiB, of which the maps {result['output_mb']:.0f} MiB")
    growth = results[8192]["mb"] - results[2048]["mb"]
    print(f"  growth {growth:.0f} MiB; the maps of 8192 x 8192 have {results[8192]['output_mb']:.0f} MiB")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(peak(int(sys.argv[1]))))
    else:
        main()
