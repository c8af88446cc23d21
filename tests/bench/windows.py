"""Sliding window over stacks beside MONAI's, same network and stack: `python tests/bench/windows.py`.

The network is a small 3D U-Net (8 channels at the finest level, 3 levels, random weights, float32; with a larger one the
windows cost less beside it), the stack 25 x 256 x 256, the windows 24 x 128 x 128. Time: both run in turns in one process, after warm-up; the ratio is the median over the turns of processor
times, which suffer less when the machine is busy. Both place the same windows; the largest difference of a probability
between the two is printed as well (MONAI cuts the Gaussian off at a thousandth).

Memory is the peak beyond what the process held before (network, stack; Linux: the resettable VmHWM), with a network of one
layer, so that what is measured is the window machinery and not the network, for a stack of 25 x 1024 x 1024; each in a
process of its own.
"""

import ctypes
import json
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from cellseg_nb.data.tiles import stitch
from cellseg_nb.models.unet3d import UNet3D
from cellseg_nb.segment.predict import plan_windows, predict_parts

SHAPE, WINDOW, TURNS = (25, 256, 256), (24, 128, 128), 3
LARGE, LARGE_WINDOW = (25, 1024, 1024), (24, 200, 200)


def ours(image, network, window, overlap, blending):
    tiles = plan_windows(image.shape[1:], window, overlap, getattr(network, "step_px", 1), blending)
    return stitch(predict_parts(image, network, tiles, "cpu"), image.shape[1:])


def monai(image, network, window, overlap, blending):
    from monai.inferers import sliding_window_inference

    with torch.inference_mode():
        return sliding_window_inference(
            torch.from_numpy(image)[None],
            window,
            1,
            lambda batch: network(batch).sigmoid_(),
            overlap=overlap,
            mode=blending,
        )[0].numpy()


def seconds(run, *arguments) -> float:
    started = time.process_time()
    run(*arguments)
    return time.process_time() - started


def compare(image, networks, overlap: float, blending: str) -> None:
    """Print times for one setting."""
    how = (WINDOW, overlap, blending)
    spent = np.array([[seconds(run, image, network, *how) for run, network in networks.items()] for _ in range(TURNS)])
    maps = [run(image, network, *how) for run, network in networks.items()]
    ratio, n_windows = np.median(spent[:, 0] / spent[:, 1]), len(plan_windows(SHAPE, *how[:2]))
    mine, theirs = np.median(spent, axis=0)
    print(
        f"  overlap {overlap:<4} {blending:8} {n_windows:3} windows: ours {mine:.2f} s, monai {theirs:.2f} s, "
        f"ratio {ratio:.3f}; largest difference {np.abs(maps[0] - maps[1]).max():.1e}"
    )


def memory_mb(field: str) -> float:
    """Read VmRSS (now) or VmHWM (peak) of this process; MiB; nan where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return int(re.search(rf"{field}:\s+(\d+)", status.read_text())[1]) / 1024


def peak(run, blending: str) -> dict:
    """Peak memory of one run in this process."""
    network = torch.nn.Conv3d(1, 1, 3, padding=1).eval()
    image = np.random.default_rng(0).normal(size=(1, *LARGE)).astype(np.float32)
    run(np.ascontiguousarray(image[:, :, :260, :260]), network, LARGE_WINDOW, 0.25, blending)
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    before = memory_mb("VmRSS")
    maps = run(image, network, LARGE_WINDOW, 0.25, blending)
    return {"mb": memory_mb("VmHWM") - before, "output_mb": maps.nbytes / 2**20}


def main():
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    network = UNet3D(f_maps=8, levels=3).eval()
    own = UNet3D(f_maps=8, levels=3).eval()  # ours reorders the weights in memory
    own.load_state_dict(network.state_dict())
    image = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)
    networks = {ours: own, monai: network}
    for run, one in networks.items():
        run(np.ascontiguousarray(image[:, :, :170, :170]), one, WINDOW, 0, "constant")
    print(
        f"{' x '.join(map(str, SHAPE))} voxels in windows of {' x '.join(map(str, WINDOW))}, processor time, median of {TURNS}"
    )
    for overlap, blending in ((0.25, "gaussian"), (0.25, "constant")):
        compare(image, networks, overlap, blending)
    print(f"memory beyond network and stack, {' x '.join(map(str, LARGE))} voxels, overlap 0.25, network of one layer")
    for blending in ("gaussian", "constant"):
        results = {}
        for name in ("ours", "monai"):
            command = [sys.executable, __file__, name, blending]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[name] = json.loads(output.splitlines()[-1])
        mine, theirs = results["ours"]["mb"], results["monai"]["mb"]
        print(
            f"  {blending:8} ours {mine:.0f} MiB, monai {theirs:.0f} MiB, ratio {mine / theirs:.2f}; "
            f"the map itself {results['ours']['output_mb']:.0f} MiB"
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(peak({"ours": ours, "monai": monai}[sys.argv[1]], sys.argv[2])))
    else:
        main()
