"""What storage elsewhere costs: bytes of a region of a large picture, and the time of `segment` from and to S3.

    python tests/experiments/store.py [--px 10000] [--pictures 16]

The web server counts what it sends; S3 is moto on this computer, so its times are those of the copying, not of a network.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from storage import Web, client, s3_server

from cellseg_nb.data.io import open_plane, write_image
from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.run.runner import run
from cellseg_nb.run.tasks.segment import Segment


def region(px: int, folder: Path) -> None:
    """Bytes that a region of 512 x 512 takes."""
    pixels, web = np.random.default_rng(1).integers(0, 1000, (px, px), np.uint16), Web()
    tifffile.imwrite(folder / "a.tif", pixels, tile=(512, 512), compression="zlib")
    write_image(folder / "a.zarr", pixels, "YX")
    web.files = {
        f"/{one.relative_to(folder).as_posix()}": one.read_bytes() for one in folder.rglob("*") if one.is_file()
    }
    for name in ("a.tif", "a.zarr"):
        web.sent, total = 0, sum(len(one) for path, one in web.files.items() if path.startswith(f"/{name}"))
        with open_plane(f"{web.url}/{name}") as plane:
            found = plane.read(5000 % px, 5000 % px + 512, 3000 % px, 3000 % px + 512)
        assert np.array_equal(found, pixels[5000 % px : 5000 % px + 512, 3000 % px : 3000 % px + 512])
        print(
            f"{name}: {total:,} bytes; region of 512 x 512: {web.sent:,} bytes ({100 * web.sent / total:.2f} %), {len(web.requests)} requests"
        )
        web.requests.clear()
    web.close()


def batch(n: int, folder: Path) -> None:
    """Seconds of `segment`, here and from S3 to S3."""
    (folder / "in").mkdir()
    with s3_server() as variables:
        os.environ.update(variables)
        for number in range(n):
            path = folder / "in" / f"p{number}.tif"
            tifffile.imwrite(path, simulate_nuclei((512, 512), seed=number)[0])
            client(variables).upload_file(str(path), "lab", f"in/{path.name}")
        task = Segment(model="nuclei")
        run(task, folder / "in" / "p0.tif", folder / "warm")  # what is loaded once is loaded
        for where, source, out in (("here", folder / "in", folder / "out"), ("S3", "s3://lab/in", "s3://lab/out")):
            for what in ("all", "again, nothing to do"):
                begun = time.perf_counter()
                summary = run(Segment(model="nuclei"), source, out)
                print(
                    f"{n} pictures of 512 x 512, {where}, {what}: {time.perf_counter() - begun:.1f} s, {summary.headline}"
                )


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--px", type=int, default=10_000)
    options.add_argument("--pictures", type=int, default=16)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = str(Path(place) / "cache")
        (Path(place) / "regions").mkdir()
        region(chosen.px, Path(place) / "regions")
        batch(chosen.pictures, Path(place))
