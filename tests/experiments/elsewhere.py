"""The same pictures on this computer, from and to S3, through Slurm, Dask and ssh: are the tables the same bytes?

python tests/experiments/elsewhere.py [--pictures 8] [--edge 256] [--model nuclei]

S3 is moto on this computer, Slurm a cluster of one node, ssh a server of its own. In Slurm and Dask a worker is killed by SIGKILL in the
middle of the second picture. Column `file` of counts.csv holds the place of a picture, which differs where pictures lie elsewhere.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cluster_servers import held_in, start_slurm, start_ssh, state_of, stop, why_no_slurm, why_no_ssh
from storage import client, s3_server

from cellseg_nb.data.io import write_image
from cellseg_nb.data.simulate import simulate_nuclei

START = [sys.executable, "-c", "from cellseg_nb.run.cli import main; main()"]
TABLES = ("counts.csv", "objects.csv")


def run(words: list, out: Path | None = None) -> str:
    """Run a command; with `out`, kill the worker that is at the second picture. What became of it."""
    start = partial(subprocess.Popen, [*START, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if out is None:
        process = start()
    else:
        with held_in(out, "i1") as at_work:
            process = start()
            killed = at_work()["pid"]
            os.kill(killed, signal.SIGKILL)
    said = process.communicate(timeout=900)
    assert process.returncode == 0, said
    if out is None:
        return "no"
    state = state_of(out, "i1")
    return f"process {killed}; i1 {state['state']} at attempt {state['attempt']} by {state['pid']}"


def compared(found: bytes, alone: bytes) -> str:
    """How far a table is that of one process; `file` is the last column."""
    if found == alone:
        return "same bytes"
    lines, expected = (
        [line.rpartition(b",")[0] for line in table.splitlines() if table.startswith(b"image,count")]
        for table in (found, alone)
    )
    return "same bytes but for column `file`" if lines and lines == expected else "differs"


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # servers are stopped then, too
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--edge", type=int, default=256)
    parser.add_argument("--model", default="nuclei")
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        work = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        os.environ |= servers.enter_context(s3_server())
        s3 = client(os.environ)
        for seed in range(asked.pictures):
            path = work / "in" / f"i{seed}.tif"
            write_image(path, simulate_nuclei((asked.edge, asked.edge), 20, seed=seed)[0], "YX")
            s3.upload_file(str(path), "lab", f"in/{path.name}")
        verb = ["segment", work / "in", "--model", asked.model, "--out"]
        # name, command, where its results lie, whether a worker is killed
        runs = [("`cellseg segment`", [*verb, work / "alone"], work / "alone", False)]
        into_s3 = ["segment", "s3://lab/in", "--model", asked.model, "--out", "s3://lab/out"]
        runs.append(("`cellseg segment s3://lab/in --out s3://lab/out`", into_s3, None, False))
        if why := why_no_slurm():
            print(f"{why}\n")
        else:
            cluster = start_slurm(work / "slurm")
            servers.callback(cluster.stop)
            os.environ |= cluster.variables
            how = ["--workers", 2, "--items-per-job", 2, "--poll", 0.5]
            runs.append(
                (
                    "`cellseg submit slurm`",
                    ["submit", "slurm", *how, "--", *verb, work / "slurm_out"],
                    work / "slurm_out",
                    True,
                )
            )
        runs.append(
            (
                "`cellseg submit dask`",
                ["submit", "dask", "--workers", 2, "--", *verb, work / "dask_out"],
                work / "dask_out",
                True,
            )
        )
        if why := why_no_ssh():
            print(f"{why}\n")
        else:
            (work / "ssh").mkdir()
            lab = start_ssh(work / "ssh")
            servers.callback(stop, lab.processes)
            there = ["--remote", "lab", "--remote-python", sys.executable, "--ssh", lab.ssh, "local", "--workers", 2]
            runs.append(
                (
                    "`cellseg submit --remote lab local`",
                    ["submit", *there, "--", *verb, work / "ssh_out"],
                    work / "ssh_out",
                    False,
                )
            )
        print(f"{asked.pictures} simulated pictures of {asked.edge} x {asked.edge}, model {asked.model}\n")
        print("| run | seconds | killed | counts.csv | objects.csv |\n| --- | --- | --- | --- | --- |", flush=True)
        alone = None
        for name, words, out, kill in runs:
            begun = time.perf_counter()
            killed = run(words, out if kill else None)
            seconds = time.perf_counter() - begun
            if out is None:
                found = [s3.get_object(Bucket="lab", Key=f"out/{one}")["Body"].read() for one in TABLES]
            else:
                found = [(out / one).read_bytes() for one in TABLES]
            alone = alone or found
            same = [compared(*both) for both in zip(found, alone)]
            print(f"| {name} | {seconds:.0f} | {killed} | {' | '.join(same)} |", flush=True)


if __name__ == "__main__":
    main()
