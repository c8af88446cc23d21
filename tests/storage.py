"""Servers of storage for tests: S3 as moto plays it, and a web server that knows ranges, breaks off and refuses."""

import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEYS = {"AWS_ACCESS_KEY_ID": "simulated", "AWS_SECRET_ACCESS_KEY": "simulated", "AWS_DEFAULT_REGION": "us-east-1"}
MOTO = """
import sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
app, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()
def one_at_a_time(environ, start):
    with lock:  # S3 compares and sets in one step; moto, in two
        return list(app(environ, start))
server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextmanager
def s3_server(authorised: bool = False):
    """Variables of an S3 on this computer, with the bucket "lab"."""

    more = {"INITIAL_NO_AUTH_ACTION_COUNT": "0"} if authorised else {}
    command, how = [sys.executable, "-c", MOTO], {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    server = subprocess.Popen(command, env=os.environ | more, **how)
    try:
        variables = KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(server.stdout.readline())}"}
        if not authorised:
            client(variables).create_bucket(Bucket="lab")
        yield variables
    finally:
        server.kill()
        server.wait()


def client(variables: dict):
    """A client of boto3."""
    import boto3

    how = {
        "aws_access_key_id": variables["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": variables["AWS_SECRET_ACCESS_KEY"],
    }
    return boto3.client("s3", endpoint_url=variables["AWS_ENDPOINT_URL"], region_name="us-east-1", **how)


class Web:
    """Files behind http://, and what was asked for."""

    def __init__(self):
        self.files, self.sent, self.requests, self.ranges = {}, 0, [], True
        self.broken: dict[str, int] = {}  # path → how many answers still break off half-way
        self.refused: set[str] = set()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(handler, *_):
                pass

            def do_HEAD(handler):
                self.answer(handler, head=True)

            def do_GET(handler):
                self.answer(handler)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def listing(self, path: str) -> bytes | None:
        names = sorted(
            {
                one[len(path) :].split("/")[0] + "/" * ("/" in one[len(path) :])
                for one in self.files
                if one.startswith(path)
            }
        )
        return "".join(f'<a href="{name}">{name}</a>\n' for name in names).encode() if names else None

    def answer(self, handler, head=False):
        path = handler.path.partition("?")[0]
        self.requests.append((handler.command, path))
        content, kind = self.files.get(path), "application/octet-stream"
        if content is None and path.endswith("/"):
            content, kind = self.listing(path), "text/html"
        status = 403 if path in self.refused else 404 if content is None else 200
        content = content if status == 200 else b""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", "")) if self.ranges else None
        size = len(content)
        if asked and status == 200:
            content = content[int(asked[1]) : int(asked[2]) + 1 if asked[2] else None]
            status = 206
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header("ETag", f'"{hash(self.files.get(path))}"')
        if asked:
            handler.send_header("Content-Range", f"bytes {asked[1]}-{int(asked[1]) + len(content) - 1}/{size}")
        handler.end_headers()
        if head:
            return
        if self.broken.get(path):
            self.broken[path] -= 1
            handler.wfile.write(content[: len(content) // 2])
            handler.close_connection = True
            return
        self.sent += len(content)
        handler.wfile.write(content)

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def until(true, seconds: float = 300, every: float = 0.05):
    """Wait until something is true, and give it."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(every)
    return found
