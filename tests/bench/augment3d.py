"""Random training patches in 3D beside MONAI's affine and elastic transforms: processor time per patch.

`python tests/bench/augment3d.py`. A patch of 24 x 200 x 200 voxels with labels and weights, from a stack of 26 x 256 x
256. Both run on one core, after a warm-up, in turns; medians over the runs. Ours does everything in one interpolation
(crop, flips, quarter turns, turn, scale, elastic deformation in 3D); MONAI's affine transform has no deformation.
"""

import time

import numpy as np
import torch
from monai.transforms import Rand3DElasticd, RandAffined

from cellseg_nb.data.transforms3d import (
    Augmentation3D,
    MonaiTransform,
    apply_monai,
    random_volume_warp,
)

RUNS, SIZE, VOXEL_UM = 5, (24, 200, 200), (0.5, 0.2, 0.2)
UNEVEN = MonaiTransform(name="RandBiasField", settings={"prob": 1.0, "coeff_range": (0.2, 0.3)})


def main() -> None:
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    image = random.random((1, 26, 256, 256), dtype=np.float32)
    labels = random.integers(0, 600, image.shape[1:]).astype(np.uint16)
    weights = image[0].copy()
    volumes = {"image": image, "labels": labels[None].astype(np.float32), "weights": weights[None]}
    modes = ("bilinear", "nearest", "bilinear")
    common = dict(prob=1, spatial_size=SIZE, mode=modes, padding_mode="reflection")
    moves = dict(rotate_range=(0.5, 0, 0), scale_range=(0.1, 0.1, 0.1))
    affine = RandAffined(list(volumes), **common, **moves)
    elastic = Rand3DElasticd(list(volumes), (10, 12), (50, 100), **common, **moves)
    settings = Augmentation3D(elastic_3d=True)
    contenders = {
        "ours": lambda: random_volume_warp(image, labels, weights, SIZE, settings, np.random.default_rng(1), VOXEL_UM),
        "MONAI, affine": lambda: affine(volumes),
        "MONAI, elastic 3D": lambda: elastic(volumes),
    }
    times = {name: [] for name in contenders}
    for run in range(RUNS + 1):
        for name, patch in contenders.items():
            start = time.process_time()
            patch()
            if run:
                times[name].append(time.process_time() - start)
    ours = np.median(times["ours"])
    for name, seconds in times.items():
        spent = np.median(seconds)
        print(f"{name:18} {spent:6.3f} s a patch   {spent / ours:5.1f} times ours")
    spoiled = [apply_monai(image, UNEVEN, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert (spoiled[0] == spoiled[1]).all() and (spoiled[0] != spoiled[2]).any()
    print("RandBiasField of MONAI: the same seed gave the same patch, another seed another")


if __name__ == "__main__":
    main()
