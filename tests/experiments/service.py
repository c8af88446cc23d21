"""The service under load, and under attack: tasks that must all be right although workers are killed, uploads that must all be refused.

    python tests/experiments/service.py [--queue sqlite|redis|sqs] [--tasks 200] [--clients 16] [--workers 2] [--kills 2]

Real processes on this computer: `cellseg serve` on a free port; Redis as Debian's redis-server, started here on a free port and with
a log on disk; SQS and S3 as moto plays them. Every task's count is compared with that of the same picture done by the package directly.
"""

import argparse
import http.client
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import tifffile
from PIL import Image as Picture

from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.segment.image import segment_image

CELLSEG = [sys.executable, "-c", "from cellseg_nb.run.cli import main; main()"]
MOTO = """
import sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple
app, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()
def one_at_a_time(environ, start):
    # S3 compares and sets in one step; moto, in two
    if "amz-json" in environ.get("CONTENT_TYPE", ""):
        return app(environ, start)
    with lock:
        return list(app(environ, start))
run_simple("127.0.0.1", int(sys.argv[1]), one_at_a_time, threaded=True, request_handler=MotoRequestHandler)
"""
PATIENCE = 600  # nothing here takes longer; s


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def until(true, seconds: float = 600, every: float = 0.05):
    """Wait until something is true, and give it; a busy machine is slow, and nothing waits longer than it must."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"not within {seconds} s: {true}"
        time.sleep(every)
    return found


def listens(port: int) -> bool:
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def process(command: list, **how):
    """A process, killed at the end."""
    started = subprocess.Popen(command, **how)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


@contextmanager
def queue_of(kind: str, folder: Path):
    """What `--queue` says for a kind of queue, which is started here; and variables that it needs."""
    if kind == "sqlite":
        yield "sqlite", {}
        return
    port, quiet = free_port(), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    if kind == "redis":
        (folder / "redis").mkdir()
        durable = ["--dir", str(folder / "redis"), "--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        with process([shutil.which("redis-server"), "--port", str(port), "--bind", "127.0.0.1", *durable], **quiet):
            until(lambda: listens(port))
            yield f"redis://127.0.0.1:{port}/0", {}
        return
    import boto3

    with process([sys.executable, "-c", MOTO, str(port)], **quiet):
        until(lambda: listens(port))
        secret = {"AWS_ACCESS_KEY_ID": "simulated", "AWS_SECRET_ACCESS_KEY": "simulated"}
        how = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"}
        how |= {name.lower(): value for name, value in secret.items()}
        boto3.client("s3", **how).create_bucket(Bucket="lab")
        for name in ("tasks", "alone"):  # "alone" is for a test that no other leaves messages to
            boto3.client("sqs", **how).create_queue(QueueName=name)
        yield f"sqs://tasks?bucket=lab&region=us-east-1&endpoint=http://127.0.0.1:{port}", secret


class Server:
    """`cellseg serve` in processes of its own; can be killed and started again on the same port."""

    def __init__(self, folder: Path, queue: str = "sqlite", variables: dict | None = None, **options):
        self.folder, self.port = Path(folder), free_port()
        self.log = self.folder / "serve.log"
        options = {
            "data": self.folder / "data",
            "queue": queue,
            "port": self.port,
            "lease_seconds": 3,
            "device": "cpu",
        } | options
        self.command = [*CELLSEG, "serve"]
        for name, value in options.items():
            self.command += [f"--{name.replace('_', '-')}", str(value)]
        self.variables = os.environ | {"OMP_NUM_THREADS": "1"} | (variables or {})
        self.url, self.process = f"http://127.0.0.1:{self.port}", None

    def start(self) -> "Server":
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(self.command, stderr=log, stdout=log, env=self.variables)
        until(lambda: listens(self.port) or self.process.poll() is not None)
        assert self.process.poll() is None, self.said
        return self

    def __enter__(self) -> "Server":
        return self.start()

    def __exit__(self, *_) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def workers(self) -> list[int]:
        """Processes of its workers that are running."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [int(one) for path in children for one in path.read_text().split()]
        return [pid for pid in pids if Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"]

    def kill(self) -> None:
        """End the server as a power cut would; its workers notice."""
        pids = self.workers
        self.process.kill()
        self.process.wait()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))

    def kill_worker(self) -> None:
        os.kill(until(lambda: self.workers)[0], signal.SIGKILL)


# Load


def picture(seed: int) -> tuple[np.ndarray, bytes, int]:
    """A picture, as a PNG, and how many nuclei the package finds in it."""
    pixels = simulate_nuclei((192, 192), 6 + seed % 12, seed=seed)[0].astype(np.uint8)
    file = io.BytesIO()
    Picture.fromarray(pixels).save(file, "png")
    return pixels, file.getvalue(), int(segment_image(pixels, "otsu").labels.max())


def patiently(ask):
    """Ask until there is an answer: the server may be down, or full."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            answer = ask()
        except httpx.TransportError:
            time.sleep(0.2)
            continue
        if answer.status_code not in (429, 503):
            return answer
        time.sleep(0.2)
    raise AssertionError("no answer")


class Load:
    """Clients that post pictures and wait for their counts."""

    def __init__(self, url: str, n_tasks: int, n_clients: int, n_pictures: int = 12):
        self.url, self.n_tasks = url, n_tasks
        self.pictures = [picture(seed)[1:] for seed in range(n_pictures)]
        self.todo, self.lock = list(range(n_tasks)), threading.Lock()
        self.done: dict[int, dict] = {}
        self.seconds: dict[int, float] = {}
        self.errors: list[str] = []
        self.threads = [threading.Thread(target=self._client, daemon=True) for _ in range(n_clients)]

    def _client(self) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while True:
                with self.lock:
                    if not self.todo:
                        return
                    number = self.todo.pop()
                try:
                    self._one(client, number)
                except Exception as error:  # shown in the table
                    self.errors.append(f"{type(error).__name__}: {error}")

    def _one(self, client: httpx.Client, number: int) -> None:
        content, count = self.pictures[number % len(self.pictures)]
        started = time.monotonic()
        head = {"Content-Type": "image/png"}
        here = patiently(lambda: client.post("/tasks?model=otsu", content=content, headers=head)).headers["Location"]
        pause = 0.2
        while True:
            told = patiently(lambda: client.get(here)).json()
            if told.get("status") not in ("QUEUED", "PROCESSING"):
                break
            time.sleep(pause)
            pause = min(1.0, pause * 1.3)
        self.seconds[number] = time.monotonic() - started
        mask = patiently(lambda: client.get(f"/masks/{told['id']}")) if told.get("status") == "FINISHED" else None
        found = None if mask is None else int(np.asarray(Picture.open(io.BytesIO(mask.content))).max())
        self.done[number] = told | {"expected": count, "in_mask": found}

    def run(self, meanwhile=lambda: None) -> dict:
        """Let the clients work, and something happen meanwhile; the figures."""
        started = time.monotonic()
        for one in self.threads:
            one.start()
        meanwhile()
        for one in self.threads:
            one.join(PATIENCE)
        status = Counter(one.get("status", "lost") for one in self.done.values())
        wrong = [
            one
            for one in self.done.values()
            if one["status"] == "FINISHED" and not one["found"]["count"] == one["expected"] == one["in_mask"]
        ]
        again = sum(one.get("attempts", 1) > 1 for one in self.done.values())
        p50, p95, p99 = np.percentile([*self.seconds.values()] or [np.nan], [50, 95, 99])
        return {
            "tasks": self.n_tasks,
            "finished": status["FINISHED"],
            "failed": status["FAILED"],
            "lost": self.n_tasks - status["FINISHED"] - status["FAILED"],
            "wrong": len(wrong),
            "begun again": again,
            "seconds": round(time.monotonic() - started, 1),
            "p50 s": round(p50, 2),
            "p95 s": round(p95, 2),
            "p99 s": round(p99, 2),
            "errors": self.errors[:3],
        }


# Hostile uploads


def png(pixels: np.ndarray | None = None, **how) -> bytes:
    file = io.BytesIO()
    Picture.fromarray(np.full((20, 30), 7, np.uint8) if pixels is None else pixels).save(file, "png", **how)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def forged_png(width: int, height: int, data: bytes, depth: int = 8, more: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(**how) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, np.full((20, 30), 7, np.uint8), byteorder="<", metadata=None, **how)
    return file.getvalue()


def forged_tiff(changes: dict[int, int], follows: int | None = None) -> bytes:
    """A TIFF in which tags have other values, and the next page is elsewhere (-1 = the same page)."""
    content = bytearray(tiff())
    place = struct.unpack_from("<I", content, 4)[0]
    n_tags = struct.unpack_from("<H", content, place)[0]
    for at in range(place + 2, place + 2 + 12 * n_tags, 12):
        code = struct.unpack_from("<H", content, at)[0]
        if code in changes:
            struct.pack_into("<HII", content, at + 2, 4, 1, changes[code])
    if follows is not None:
        struct.pack_into("<I", content, place + 2 + 12 * n_tags, place if follows < 0 else follows)
    return bytes(content)


def raw(url: str, request: bytes) -> int:
    """Send bytes as they are; the status of the answer, 0 = the connection was closed without one."""
    host, port = re.match(r"http://(.*):(\d+)", url).groups()
    with socket.create_connection((host, int(port)), timeout=20) as one:
        one.sendall(request.replace(b"HOST", f"{host}:{port}".encode()))
        answer = one.recv(100)
    return int(answer.split()[1]) if answer.startswith(b"HTTP/") else 0


def hostile(most_mpx: float = 20, most_mb: float = 2) -> dict:
    """Name -> what is sent: content, kind, query; or a function of the address that gives a status."""
    bomb = zlib.compress(b"\0" * 50_000_000)
    good, kind = png(), "image/png"
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + good + b"\r\n--x--\r\n"
    broken = bytearray(good)
    broken[45] ^= 255
    return {
        "nothing": (b"", kind, ""),
        "a script": (b"#!/bin/sh\nrm -rf ~\n", kind, ""),
        "a web page": (b"<html><script>alert(1)</script>", kind, ""),
        "a ZIP that says it is a PNG": (b"PK\3\4" + bytes(100), kind, ""),
        "a GIF": (b"GIF89a" + bytes(100), "image/gif", ""),
        "JSON": (b"{}", "application/json", ""),
        "a TIFF that says it is a PNG": (tiff(), kind, ""),
        "a PNG that says it is a TIFF": (good, "image/tiff", ""),
        "PNG: half of it": (good[: len(good) // 2], kind, ""),
        "PNG: a byte changed": (bytes(broken), kind, ""),
        "PNG: 65,000 x 65,000 pixels in 100 bytes": (forged_png(65_000, 65_000, zlib.compress(b"")), kind, ""),
        "PNG: 0 x 0 pixels": (forged_png(0, 0, zlib.compress(b"")), kind, ""),
        "PNG: unpacks to 50 MB, declares 600 bytes": (forged_png(30, 20, bomb), kind, ""),
        "PNG: declares more than it has": (forged_png(1000, 1000, zlib.compress(b"\0" * 500)), kind, ""),
        "PNG: a depth that there is not": (forged_png(30, 20, zlib.compress(b"\0" * 620), depth=7), kind, ""),
        "PNG: a part of 4 GB": (good[:33] + struct.pack(">I", 2**32 - 1) + good[37:], kind, ""),
        "PNG: an animation": (
            png(save_all=True, append_images=[Picture.fromarray(np.full((20, 30), 9, np.uint8))]),
            kind,
            "",
        ),
        "TIFF: half of it": (tiff()[:60], "image/tiff", ""),
        "TIFF: 60,000 x 60,000 pixels": (forged_tiff({256: 60_000, 257: 60_000}), "image/tiff", ""),
        "TIFF: more pixels than bytes": (forged_tiff({256: 4_000, 257: 4_000}), "image/tiff", ""),
        "TIFF: pages in a circle": (forged_tiff({}, follows=-1), "image/tiff", ""),
        "TIFF: next page behind the end": (forged_tiff({}, follows=2**31), "image/tiff", ""),
        "TIFF: pixels behind the end": (forged_tiff({273: 2**31}), "image/tiff", ""),
        "TIFF: no width": (forged_tiff({256: 0}), "image/tiff", ""),
        "larger than allowed": (png(np.random.default_rng(0).integers(0, 255, (1800, 1800), dtype=np.uint8)), kind, ""),
        "an unknown task": (good, kind, "?task=../../etc/passwd"),
        "a model that is a path": (good, kind, "?model=/etc"),
        "a setting that there is not": (good, kind, "?color=red"),
        "a setting out of its range": (good, kind, "?min_area_px=-1"),
        "a setting that is a file of the server": (good, kind, "?task=graph&edges=/etc/passwd"),
        "a form that is cut off": (form[:-9], "multipart/form-data; boundary=x", ""),
        "a form without an end": (form, "multipart/form-data", ""),
        "a form with two files": (form[:-7] + b"\r\n" + form, "multipart/form-data; boundary=x", ""),
        "a page of somebody else": (good, kind, "", {"Origin": "http://evil.example"}),
        "another name for this server": (good, kind, "", {"Host": "evil.example"}),
        "a name for this server that is none": (good, kind, "", {"Host": "["}),
        "a page that comes from nowhere": (good, kind, "", {"Origin": "http://["}),
        "a number that is none": (good, kind, "?min_area_px=inf"),
        "lies about its length": lambda url: raw(
            url, b"POST /tasks HTTP/1.1\r\nHost: HOST\r\nContent-Type: image/png\r\nContent-Length: 99999999999\r\n\r\n"
        ),
        "two lengths": lambda url: raw(
            url,
            b"POST /tasks HTTP/1.1\r\nHost: HOST\r\nContent-Type: image/png\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        ),
        "no HTTP": lambda url: raw(url, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
        "a head of 100 kB": lambda url: raw(url, b"GET / HTTP/1.1\r\nHost: HOST\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"),
        "an image that comes byte by byte": slow_upload,
        "a task that is a path": lambda url: httpx.get(f"{url}/tasks/..%2F..%2Fetc%2Fpasswd").status_code,
        "a mask of no task": lambda url: httpx.get(f"{url}/masks/12345678-1234-4234-8234-123456789abc").status_code,
    }


def slow_upload(url: str) -> int:
    """Send a byte now and then, until the server has had enough."""
    host, port = re.match(r"http://(.*):(\d+)", url).groups()
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.putrequest("POST", "/tasks")
    connection.putheader("Content-Type", "image/png")
    connection.putheader("Content-Length", "100000")
    connection.endheaders()
    connection.sock.settimeout(0.2)
    answer = b""
    for _ in range(150):
        try:
            connection.sock.sendall(b"\x89")
            answer = connection.sock.recv(100)
            break
        except TimeoutError:
            continue
        except OSError:
            break
    connection.close()
    return int(answer.split()[1]) if answer.startswith(b"HTTP/") else 0


def attack(url: str) -> dict[str, int]:
    """Send everything hostile; name -> status."""
    found = {}
    for name, sent in hostile().items():
        if callable(sent):
            found[name] = sent(url)
            continue
        content, kind, query, *more = sent
        head = {"Content-Type": kind} | (more[0] if more else {})
        found[name] = httpx.post(f"{url}/tasks{query}", content=content, headers=head, timeout=30).status_code
    return found


LIMITS = {"most_mb": 2, "most_mpx": 20, "upload_seconds": 2}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words.add_argument("--queue", choices=["sqlite", "redis", "sqs"], default="sqlite")
    for name, default in (("tasks", 200), ("clients", 16), ("workers", 2), ("kills", 2)):
        words.add_argument(f"--{name}", type=int, default=default)
    given = words.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        queue, variables = stack.enter_context(queue_of(given.queue, folder))
        server = stack.enter_context(Server(folder, queue, variables, workers=given.workers, **LIMITS))
        load = Load(server.url, given.tasks, given.clients)

        def meanwhile():
            for number in range(given.kills):
                enough = (number + 1) * given.tasks // (given.kills + 1)
                until(lambda: len(load.done) >= enough)
                time.sleep(random.random())
                server.kill_worker()

        figures = load.run(meanwhile)
        print(f"{given.queue}: {given.clients} clients, {given.workers} workers, a worker killed {given.kills} times")
        print(json.dumps(figures, indent=1))
        statuses = attack(server.url)
        health = httpx.get(f"{server.url}/health").json()
        for name, status in statuses.items():
            print(f"  {status or 'closed'}  {name}")
        bad = [name for name, status in statuses.items() if not 400 <= status < 500]
        print(
            f"{len(statuses)} hostile uploads, {len(statuses) - len(bad)} answered by 4xx; health afterwards: {health}"
        )
        left = [one.name for one in (folder / "data/scratch").iterdir()]
        print(f"left in scratch: {len(left)}")
    if bad or figures["lost"] or figures["wrong"] or figures["failed"]:
        sys.exit(f"not as promised: {bad or figures}")


if __name__ == "__main__":
    main()
