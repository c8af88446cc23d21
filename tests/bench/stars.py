"""Star distances beside StarDist's own, which are compiled C++: `python tests/bench/stars.py`.

The labels are simulated nuclei. Both are warmed up, then take turns; times are the least of the runs, with one thread.
"""

import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from stardist.geometry import star_dist

from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.data.targets import star_distances

RUNS = 7


def main():
    for edge, n_nuclei, n_rays, grid in ((192, 18, 32, (2, 2)), (512, 125, 32, (1, 1)), (2048, 2000, 64, (2, 2))):
        labels = simulate_nuclei((edge, edge), n_nuclei=n_nuclei, seed=0)[1].astype(np.int32)
        methods = {
            "ours": lambda: star_distances(labels, n_rays, grid),
            "StarDist": lambda: star_dist(labels, n_rays, grid=grid),
        }
        found = {name: method() for name, method in methods.items()}
        seconds = dict.fromkeys(methods, np.inf)
        for _ in range(RUNS):
            for name, method in methods.items():
                started = time.process_time()
                method()
                seconds[name] = min(seconds[name], time.process_time() - started)
        difference = np.abs(found["ours"] - found["StarDist"]).max()
        print(
            f"{edge} x {edge} px, {n_nuclei} nuclei, {n_rays} rays, grid {grid}: largest difference {difference:.1e} px"
        )
        for name, spent in seconds.items():
            print(f"  {name:<9} {spent * 1e3:8.1f} ms processor time  {spent / seconds['ours']:5.1f} times ours")


if __name__ == "__main__":
    main()
