"""What a run outlives: kills at any moment, a second run beside it, a full disk, and files that are no pictures.

    python tests/experiments/hardships.py [--times 20] [--only NAME ...]

Everything is small and simulated. Each command runs in a fork of this process, which has loaded the libraries, so
that a kill meets the work and not the imports. The table says what was tried and what was survived: after a kill the same
command again gives the result of an undisturbed run, and nothing unfinished is left behind.
"""

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from odd_files import KINDS, good_files

from cellseg_nb.data.downloads import download
from cellseg_nb.data.io import read_labels, write_image
from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.run.cli import app

PATIENCE = 180  # no command here takes longer; s
MEMORY = 12 * 2**30  # of a fork that reads odd files; bytes
LEFT = (".cellseg-", ".part", ".lock", ".claim", ".unfinished", "_scratch", ".partial-", ".mark")
TINY = {
    "data": {
        "sources": [
            {"dataset": "simulated-nuclei", "split": "train", "images": 3},
            {"dataset": "simulated-nuclei", "split": "test", "images": 1},
        ]
    },
    "model": {"unet": {"network": {"encoder": "resnet18", "encoder_depth": 3, "decoder_channels": [16, 8, 8]}}},
    "training": {"unet": {"epochs": 1, "crops_per_epoch": 4, "batch_size": 4, "crop_px": 64}},
    "evaluation": {"segmentation": {"device": "cpu"}},
    "pictures": {"overlays": 1, "worst": 1, "best": 1},
}


@dataclass
class Tried:
    """A row of the table."""

    what: str
    times: int = 0
    survived: int = 0
    remarks: list[str] = field(default_factory=list)

    def note(self, problem: str, remark: str = "") -> None:
        """Count one trial; a problem = it was not survived."""
        self.times, self.survived = self.times + 1, self.survived + (not problem)
        self.remarks += [one for one in (problem, remark) if one and one not in self.remarks]


# Running and killing


class Fork:
    """A command in a fork of this process."""

    def __init__(self, work, log: Path, memory: int | None = None):
        self.log, self.pid = log, os.fork()
        if self.pid:
            return
        code = 70
        try:
            with open(log, "w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
            if memory:
                resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            code = work() or 0
        except SystemExit as error:
            code = error.code or 0
        finally:
            sys.stdout.flush()
            os._exit(code)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit code; one that takes longer is killed, and gives -9."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")


def verb(*words):
    """A command of `cellseg`."""
    return lambda: app([str(one) for one in words])


def digest(path: Path) -> str:
    """Checksum of a result, without times."""
    if path.suffix == ".csv":
        table = pd.read_csv(path)
        text = table.drop(columns=["seconds", "file"], errors="ignore").to_csv()
        return hashlib.sha256(text.encode()).hexdigest()
    if path.name in ("counts.json", "metrics.json"):
        known = json.loads(path.read_text())
        rows = known.get("groups") or [
            {k: v for k, v in one.items() if k not in ("seconds", "file")} for one in known.values()
        ]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def results(out: Path, only: tuple[str, ...] = ("**/*",)) -> dict[str, str]:
    """Files of a folder with checksums; records and reports, which hold times, do not count."""
    files = {one for pattern in only for one in out.glob(pattern) if one.is_file()}
    files = {one for one in files if one.name not in ("run.json", "report.html") and ".resume" not in one.parts}
    return {one.relative_to(out).as_posix(): digest(one) for one in sorted(files)}


def difference(out: Path, expected: dict[str, str], only: tuple[str, ...] = ("**/*",)) -> str:
    """What is wrong with a folder of results; empty = it is that of an undisturbed run."""
    left = [one.name for one in out.rglob("*") if any(part in one.name for part in LEFT) or one.name == "lock"]
    if left:
        return f"left behind: {left[0]}"
    found = results(out, only)
    other = [name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name)]
    return f"differs: {sorted(other)[0]}" if other else ""


def killed(tried: Tried, times: int, place: Path, work, again=None, only=("**/*",), prepare=None, rng=None) -> None:
    """Kill a command at random moments; then do it again and compare with an undisturbed run."""

    def begin(name):
        out = place / name
        if prepare is not None:
            prepare(out)
        return out

    out, started = begin("reference"), time.monotonic()
    reference = Fork(work(out), place / "log")
    code = reference.wait()
    seconds, expected = time.monotonic() - started, results(out, only)
    assert code == 0 and expected, reference.said[-2000:]
    for number in range(times):
        out = begin(f"killed_{number}")
        fork = Fork(work(out), place / "log")
        time.sleep(rng.uniform(0.02, 0.95) * seconds)
        os.kill(fork.pid, signal.SIGKILL)
        os.waitpid(fork.pid, 0)
        fork = Fork((again or work)(out), place / "log")
        code = fork.wait()
        problem = f"exit code {code}: {fork.said.strip()[-160:]}" if code else difference(out, expected, only)
        tried.note(problem)
        shutil.rmtree(out, ignore_errors=True)


def at_once(tried: Tried, times: int, place: Path, work, waits: bool = False, only=("**/*",), prepare=None) -> None:
    """Start a command twice at the same moment; one does it, the other waits or is refused."""
    for number in range(times + 1):
        out = place / f"two_{number}"
        if prepare is not None:
            prepare(out)
        forks = [Fork(work(out), place / f"log_{n}") for n in range(1 + (number > 0))]
        codes = [fork.wait() for fork in forks]
        if number == 0:  # undisturbed
            expected = results(out, only)
            continue
        wrong = [f for f, c in zip(forks, codes) if c and ("in use by another run (process" not in f.said or waits)]
        wrong += forks if 0 not in codes else []  # each refused for the other
        problem = f"exit codes {codes}: {wrong[0].said.strip()[-160:]}" if wrong else difference(out, expected, only)
        tried.note(problem, "the other is refused" if max(codes) else "the other waits" if waits else "")
        shutil.rmtree(out, ignore_errors=True)


# A server that is slow enough to be met in the middle

CONTENT = random.Random(0).randbytes(4 * 2**20)


class Slow(BaseHTTPRequestHandler):
    """Sends `CONTENT`, or the rest of it, a little at a time."""

    def do_GET(self):
        first = int(self.headers.get("Range", "bytes=0-")[6:].rstrip("-"))
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(CONTENT) - first))
        self.end_headers()
        try:
            for at in range(first, len(CONTENT), 1 << 17):
                self.wfile.write(CONTENT[at : at + (1 << 17)])
                time.sleep(0.02)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def log_message(self, *_):
        pass


def fetching(address: str):
    """A download into a folder."""
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    return lambda out: lambda: download(address, out / "archive.bin", sha256) and 0


# The parts of the table


def pictures(folder: Path, number: int, shape: tuple[int, int], n_nuclei: int) -> Path:
    for seed in range(number):
        write_image(folder / f"i{seed}.tif", simulate_nuclei(shape, n_nuclei, seed=seed)[0], "YX")
    return folder


def commands(place: Path) -> dict[str, dict]:
    """What is killed, and started twice."""
    small = pictures(place / "small", 6, (160, 160), 8)
    few = pictures(place / "few", 2, (96, 96), 5)
    (large,) = pictures(place / "large", 1, (224, 320), 16).iterdir()
    walls = np.zeros((8, 48, 48), np.float32)
    walls[:, ::12], walls[:, :, ::12] = 1, 1
    write_image(place / "walls.tif", walls, "ZYX")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    project = place / "project"
    assert Fork(verb("init", project), place / "log").wait() == 0
    (project / "conf/local/parameters.yml").write_text(yaml.safe_dump(TINY))

    def copied(out):
        shutil.copytree(project, out)

    pipeline = dict(prepare=copied, only=("data/07_model_output/**/*.tif", "data/08_reporting/metrics.*"))
    pieces = ("--large-mpx", 0.05, "--tile", 128, "--overlap", 32, "--zarr", "--device", "cpu")
    exports = ("--model", "otsu", "--zarr", "--roi", "--geojson")
    return {
        "segment": dict(work=lambda out: verb("segment", small, "--out", out, *exports)),
        "count": dict(work=lambda out: verb("count", few, "--out", out, "--no-flips", "--device", "cpu")),
        "large picture": dict(work=lambda out: verb("segment", large, "--out", out, *pieces)),
        "graph": dict(work=lambda out: verb("graph", place / "walls.tif", "--out", out)),
        "download": dict(work=fetching(f"http://127.0.0.1:{server.server_port}/archive.bin")),
        "pipeline run": dict(
            work=lambda out: verb("pipeline", "run", "--project", out),
            again=lambda out: verb("pipeline", "run", "--project", out, "--resume"),
            **pipeline,
        ),
    }


def full_disk(place: Path) -> list[Tried]:
    """A disk that fills up while pictures are written, and one that is full when the tables come."""
    rows = [Tried("full disk: while pictures are written"), Tried("full disk: when the tables come")]
    disk, images = place / "disk", pictures(place / "images", 8, (400, 400), 40)
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode
    ):
        for row in rows:
            row.remarks = ["skipped: a small disk can be mounted by root only"]
        return rows
    try:
        words = ("segment", images, "--model", "otsu", "--zarr")
        assert Fork(verb(*words, "--out", place / "free"), place / "log").wait() == 0
        expected, out = results(place / "free"), disk / "out"
        fork = Fork(verb(*words, "--out", out), place / "log")
        code = fork.wait()
        problem = "" if code in (1, 2) and "No space left" in fork.said else f"exit code {code}: {fork.said[-160:]}"
        for path in out.glob("*_labels.tif"):
            read_labels(path)  # whole, or not there
        subprocess.run(["mount", "-o", "remount,size=60m", disk], check=True)
        again = Fork(verb(*words, "--out", out), place / "log").wait()
        rows[0].note(problem or (f"exit code {again}" if again else difference(out, expected)), f"exit code {code}")
        for path in (*out.glob("*.csv"), out / "report.html", out / "run.json"):
            path.unlink()
        with open(disk / "filler", "wb", buffering=0) as filler:
            try:
                while filler.write(bytes(1 << 12)):
                    pass
            except OSError:
                pass  # now it is full
        fork = Fork(verb(*words, out, "--out", out), place / "log")  # `out` holds no picture: a failure to remember
        code = fork.wait()
        told = "its tables and report could not be written" in fork.said and f"{out}/" in fork.said
        (disk / "filler").unlink()
        again = Fork(verb(*words, "--out", out), place / "log").wait()
        problem = "" if code == 1 and told else f"exit code {code}: {fork.said[-160:]}"
        rows[1].note(problem or (f"exit code {again}" if again else difference(out, expected)), f"exit code {code}")
    finally:
        subprocess.run(["umount", disk], check=False)
    return rows


def odd_files(place: Path) -> list[Tried]:
    """Files that are no pictures, kind by kind, each among good ones."""
    rows = []
    for kind, make in KINDS.items():
        folder, out = place / kind.replace(" ", "_"), place / f"out_{kind.replace(' ', '_')}"
        folder.mkdir()
        good = good_files(folder)
        make(folder, np.random.default_rng(0))
        row = Tried(f"odd files: {kind}", len(os.listdir(os.fsencode(folder))) - len(good))
        fork = Fork(verb("segment", folder, "--model", "otsu", "--out", out), place / "log", MEMORY)
        code = fork.wait()
        counted = pd.read_csv(out / "counts.csv").set_index("image")["count"] if (out / "counts.csv").exists() else {}
        missing = [name for name in good if name not in counted or not counted[name]]
        if code not in (0, 1) or "Traceback" in fork.said or missing:
            hung = "too long or out of memory" if code == -9 else f"exit code {code}"
            row.remarks = [f"{hung}, good pictures missing: {missing}; {fork.said.strip()[-120:]}"]
        else:
            row.survived = row.times
            row.remarks = [f"{len(counted) - len(good)} counted, {fork.said.count('error: ')} named as errors"]
        rows.append(row)
    return rows


def table(rows: list[Tried]) -> str:
    lines = ["| what | tried | survived | remarks |", "| --- | --- | --- | --- |"]
    for row in rows:
        said = "; ".join(" ".join(one.split()).replace("|", "/") for one in row.remarks)
        lines.append(f"| {row.what} | {row.times} | {row.survived} | {said} |")
    return "\n".join(lines)


def warm() -> None:
    """Load what the forks need; nothing that starts threads."""
    import imagecodecs  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import segmentation_models_pytorch  # noqa: F401
    import torch
    import zarr  # noqa: F401

    import cellseg_nb.run.workflow
    import cellseg_nb.segment.count
    import cellseg_nb.segment.large
    import cellseg_nb.train.learner  # noqa: F401
    from cellseg_nb.segment.image import segment_image

    torch.set_num_threads(1)
    segment_image(simulate_nuclei((96, 96), 5, seed=0)[0], "otsu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20, help="kills of each command")
    parser.add_argument("--only", nargs="*", default=["kill", "two", "disk", "odd"], help="kill, two, disk, odd")
    parser.add_argument("--commands", nargs="*", help="only these commands are killed and started twice")
    parser.add_argument("--seed", type=int, default=1)
    chosen, rng, rows = parser.parse_args(), random.Random(0), []
    rng.seed(chosen.seed)
    warm()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        made = commands(place) if {"kill", "two"} & set(chosen.only) else {}
        made = {name: one for name, one in made.items() if name in (chosen.commands or made)}

        def show(row):
            rows.append(row)
            print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)

        for name, one in made.items() if "kill" in chosen.only else ():
            (place / f"kill {name}").mkdir()
            row = Tried(f"kill -9: {name}")
            killed(row, chosen.times, place / f"kill {name}", rng=rng, **one)
            show(row)
        for name, one in made.items() if "two" in chosen.only else ():
            (place / f"two {name}").mkdir()
            row = Tried(f"two at once: {name}")
            one = {key: value for key, value in one.items() if key != "again"}
            at_once(row, max(1, chosen.times // 5), place / f"two {name}", waits=name == "download", **one)
            show(row)
        for part, name in ((full_disk, "disk"), (odd_files, "odd")):
            if name in chosen.only:
                (place / name).mkdir()
                for row in part(place / name):
                    show(row)
    print(table(rows))
    survived = all(row.survived == row.times for row in rows)
    print(f"\n{sum(row.survived for row in rows)} of {sum(row.times for row in rows)} survived")
    sys.exit(not survived)


if __name__ == "__main__":
    main()
