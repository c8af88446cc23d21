"""S-BSST265: downloaded from a server on this computer, and its images with a few outlined nuclei."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from typer.testing import CliRunner

from cellseg_nb.core import file_sha256
from cellseg_nb.data.catalog import samples
from cellseg_nb.data.io import read_labels
from cellseg_nb.data.sbsst265 import simulate_sbsst265
from cellseg_nb.measure.matching import matched_pairs
from cellseg_nb.run.cli import app
from cellseg_nb.segment.watershed import otsu_watershed


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path):
    """The address and the checksum of a small archive."""
    archive = simulate_sbsst265(tmp_path / "served" / "dataset.zip", 2, 2, edge_px=64)
    handler = partial(Quiet, directory=str(archive.parent))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/dataset.zip", file_sha256(archive)
    server.shutdown()
    server.server_close()


def test_get_from_another_address(mirror, tmp_path, monkeypatch):
    monkeypatch.delenv("CELLSEG_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    address, checksum = mirror
    wrong = CliRunner().invoke(app, ["data", "get", "sbsst265", "--address", address])
    assert wrong.exit_code == 2
    assert f"has the checksum {checksum} and not" in wrong.stderr and "Traceback" not in wrong.stderr
    arguments = ["data", "get", "sbsst265", "--address", address, "--sha256", checksum]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = samples("sbsst265")
    assert [(one.split, one.kind) for one in found[1:]] == [
        ("train", "train"),
        ("test", "NC-I"),
        ("test", "NC-III"),
    ]
    assert all(one.image().shape == one.labels().shape == (64, 64) for one in found)
    folder = tmp_path / "user" / "cellseg_nb" / "sbsst265" / "test"
    assert read_labels(next((folder / "masks").iterdir())).max() > 0


@pytest.mark.needs_data("sbsst265_sparse")
def test_outlined_nuclei_of_sparse_images():
    found = outlined = 0
    for sample in samples("sbsst265-sparse"):
        truth = sample.labels()
        outlined += np.count_nonzero(np.unique(truth))
        found += len(matched_pairs(truth, otsu_watershed(sample.image()))[0])
    assert outlined == 20
    assert found >= 10  # of nuclei that stand close together, a threshold misses some
