"""Seconds for many pictures with one process, with workers, through Slurm and through Dask; and what a task reads and writes.

python tests/experiments/scaling.py [--pictures 64] [--edge 512] [--model nuclei] [--only local slurm dask]
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cluster_servers import start_slurm, why_no_slurm

from cellseg_nb.data.io import write_image
from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.run.cluster import read_submission

START = [sys.executable, "-c", "from cellseg_nb.run.cli import main; main()"]


def seconds_of(*words) -> float:
    """How long a command takes."""
    begun = time.perf_counter()
    done = subprocess.run([*START, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - begun


def cpu_seconds() -> float:
    """Of all processes that have ended and were waited for."""
    times = os.times()
    return times.children_user + times.children_system


def size_of(folder: Path, skip: str = "") -> tuple[int, float]:
    """Files and megabytes of a folder."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file() and not (skip and skip in path.parts)]
    return len(sizes), sum(sizes) / 1e6


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # servers are stopped then, too
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--edge", type=int, default=512)
    parser.add_argument("--model", default="nuclei")
    parser.add_argument(
        "--only", nargs="+", default=["local", "slurm", "dask"], help="Which of them besides one process."
    )
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        work, cluster = Path(folder), None
        for seed in range(asked.pictures):
            write_image(
                work / "in" / f"i{seed:04d}.tif", simulate_nuclei((asked.edge, asked.edge), 60, seed=seed)[0], "YX"
            )
        verb = ["segment", work / "in", "--model", asked.model, "--out"]
        group = -(-asked.pictures // 4)
        runs = {
            "segment": [],
            "submit local --workers 1": ["submit", "local", "--"],
            "submit local --workers 2": ["submit", "local", "--workers", 2, "--"],
            f"submit slurm --workers 2 --items-per-job {group}": [
                "submit",
                "slurm",
                "--workers",
                2,
                "--items-per-job",
                group,
                "--poll",
                0.5,
                "--",
            ],
            "submit dask --workers 2": ["submit", "dask", "--workers", 2, "--"],
        }
        if why := why_no_slurm():
            print(why)
        left_out = {"local", "slurm", "dask"} - set(asked.only) | ({"slurm"} if why else set())
        runs = {name: words for name, words in runs.items() if not left_out & set(words)}
        try:
            if "slurm" not in left_out:
                cluster = start_slurm(work / "slurm")
                os.environ |= cluster.variables
            alone = None
            for number, (name, words) in enumerate(runs.items()):
                spent, out = cpu_seconds(), work / f"out{number}"
                seconds = seconds_of(*words, *verb, out)
                alone = alone or seconds
                same = all(
                    (out / one).read_bytes() == (work / "out0" / one).read_bytes()
                    for one in ("counts.csv", "objects.csv")
                )
                print(
                    f"{name:45s} {seconds:6.1f} s  {alone / seconds:4.2f}x  CPU {cpu_seconds() - spent:6.1f} s  tables as alone: {same}",
                    flush=True,
                )
            submission = read_submission(work / "out1")
            states = [submission.state(number) for number in range(asked.pictures)]
            print(
                f"seconds for a picture: first {states[0]['seconds']}, others {sum(one['seconds'] for one in states[1:]) / (asked.pictures - 1):.2f}"
            )
            print("read: {} files, {:.1f} MB".format(*size_of(work / "in")))
            print("written: {} files, {:.1f} MB".format(*size_of(work / "out0")))
            print("submission: {} files, {:.2f} MB".format(*size_of(submission.folder)))
        finally:
            if cluster is not None:
                cluster.stop()


if __name__ == "__main__":
    main()
