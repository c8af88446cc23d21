"""Files elsewhere: every command reads from and writes to S3 and the web, regions are read alone, and each trouble is one line."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tifffile
from storage import Web, client, s3_server, until
from typer.testing import CliRunner

from cellseg_nb import places, store, working
from cellseg_nb.data.io import find_images, open_image, open_plane, read_image, write_image, write_labels
from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.run.cli import app
from cellseg_nb.run.runner import run
from cellseg_nb.run.tasks.segment import Segment

CELLSEG = [sys.executable, "-c", "from cellseg_nb.run.cli import main; main()"]


@pytest.fixture(scope="module")
def server():
    with s3_server() as variables:
        yield variables


@pytest.fixture
def lab(server, tmp_path, monkeypatch):
    """An empty bucket `lab`, an empty cache, and a client."""
    for name in [one for one in os.environ if one.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store._CHECKED.clear()
    s3 = client(server)
    for one in s3.list_objects_v2(Bucket="lab").get("Contents", []):
        s3.delete_object(Bucket="lab", Key=one["Key"])
    return s3


@pytest.fixture
def web(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store._CHECKED.clear()
    one = Web()
    yield one
    one.close()


def tiff(pixels, **how) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **how)
    return file.getvalue()


def nuclei(n: int) -> list[bytes]:
    return [tiff(simulate_nuclei((128, 128), seed=seed)[0]) for seed in range(n)]


def put(lab, name: str, content: bytes) -> None:
    lab.put_object(Bucket="lab", Key=name, Body=content)


def got(lab, name: str) -> bytes:
    return lab.get_object(Bucket="lab", Key=name)["Body"].read()


def names(lab, prefix: str = "") -> list[str]:
    return [one["Key"] for one in lab.list_objects_v2(Bucket="lab", Prefix=prefix).get("Contents", [])]


def upload(lab, folder, prefix: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            put(lab, f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def cellseg(*words, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == code, done.output + repr(done.exception)
    return done.output


def same_tables(lab, prefix: str, folder, columns=("file", "seconds")) -> None:
    for path in folder.glob("*.csv"):
        there = pd.read_csv(io.BytesIO(got(lab, f"{prefix}/{path.name}"))).drop(columns=list(columns), errors="ignore")
        pd.testing.assert_frame_equal(there, pd.read_csv(path).drop(columns=list(columns), errors="ignore"))


# Commands


def test_segment_from_and_to_a_bucket(lab, tmp_path):
    here = tmp_path / "in"
    here.mkdir()
    for n, content in enumerate(nuclei(3)):
        put(lab, f"in/p{n}.tif", content)
        (here / f"p{n}.tif").write_bytes(content)
    printed = cellseg("segment", "s3://lab/in", "--out", "s3://lab/out", "--model", "otsu")
    assert "report: s3://lab/out/report.html" in printed
    cellseg("segment", here, "--out", tmp_path / "out", "--model", "otsu")
    same_tables(lab, "out", tmp_path / "out")
    assert got(lab, "out/p1_labels.tif") == (tmp_path / "out" / "p1_labels.tif").read_bytes()
    counts = pd.read_csv(io.BytesIO(got(lab, "out/counts.csv")))
    assert counts["file"].tolist() == [f"s3://lab/in/p{n}.tif" for n in range(3)]
    written = [got(lab, one) for one in names(lab, "out/") if one.endswith((".json", ".csv", ".html"))]
    assert not any(str(tmp_path).encode() in one for one in written)  # no name of the cache leaves this computer
    assert working.HOLDER not in [one.removeprefix("out/") for one in names(lab, "out/")]
    assert "3 finished before" in cellseg("segment", "s3://lab/in", "--out", "s3://lab/out", "--model", "otsu")
    shutil.rmtree(tmp_path / "cache")  # another computer goes on, too
    store._CHECKED.clear()
    assert "3 finished before" in cellseg("segment", "s3://lab/in/*.tif", "--out", "s3://lab/out", "--model", "otsu")


def test_killed_run_into_a_bucket_goes_on(lab, tmp_path):
    for n, content in enumerate(nuclei(6)):
        put(lab, f"in/p{n}.tif", content)
    command = [*CELLSEG, "segment", "s3://lab/in", "--out", "s3://lab/out", "--model", "otsu"]
    begun = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = until(lambda: [one for one in names(lab, "out/.resume/segment/") if one.endswith(".json")])
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    assert "out/counts.csv" not in names(lab) and len(records) < 6
    assert f"out/{working.HOLDER}" in names(lab)
    finished = [one for one in names(lab, "out/.resume/segment/") if one.endswith(".json")]
    printed = cellseg("segment", "s3://lab/in", "--out", "s3://lab/out", "--model", "otsu")
    before = int(printed.split(" finished before")[0].split()[-1])
    assert len(finished) <= before < 6
    assert len(pd.read_csv(io.BytesIO(got(lab, "out/counts.csv")))) == 6


def test_two_runs_into_one_folder(lab):
    put(lab, "in/a.tif", nuclei(1)[0])
    other = working.Holder("s3://lab/out")
    other.own["host"] = "another computer"
    other.take()
    printed = cellseg("segment", "s3://lab/in/a.tif", "--out", "s3://lab/out", "--model", "otsu", code=2)
    assert "s3://lab/out is in use by another run (process" in printed and "on another computer" in printed
    assert names(lab, "out/") == [f"out/{working.HOLDER}"]
    late = working.Holder("s3://lab/out")
    late.found = dict  # it looked before the other one was there
    with pytest.raises(ValueError, match="^s3://lab/out is in use by another run that has just begun"):
        late.take()
    other.own["run"] = "old"
    other.system.pipe_file(other.key, json.dumps(other.own | {"renewed": 0}).encode())
    cellseg("segment", "s3://lab/in/a.tif", "--out", "s3://lab/out", "--model", "otsu")


def test_results_of_others_are_refused_and_kept(lab):
    put(lab, "in/a.tif", nuclei(1)[0])
    put(lab, "out/counts.csv", b"mine")
    put(lab, "out/large/raw.bin", b"0" * 1000)
    printed = cellseg("segment", "s3://lab/in/a.tif", "--out", "s3://lab/out", "--model", "otsu", code=2)
    assert "s3://lab/out/counts.csv was not made by this command" in printed
    assert got(lab, "out/counts.csv") == b"mine"
    cellseg("segment", "s3://lab/in/a.tif", "--out", "s3://lab/out", "--model", "otsu", "--overwrite")
    assert got(lab, "out/counts.csv").startswith(b"image,count") and got(lab, "out/large/raw.bin") == b"0" * 1000


def test_labels_changed_in_the_bucket_are_kept(lab, tmp_path):
    put(lab, "in/a.tif", nuclei(1)[0])
    cellseg("segment", "s3://lab/in/a.tif", "--out", "s3://lab/out", "--model", "otsu")
    labels = np.zeros((128, 128), np.uint16)
    labels[5:20, 5:20] = 1
    put(lab, "out/a_labels.tif", write_labels(tmp_path / "a.tif", labels).read_bytes())
    printed = cellseg("segment", "s3://lab/in/a.tif", "--out", "s3://lab/out", "--model", "otsu")
    assert "1 object in 1 image" in printed and "were changed after they were written" in printed
    assert np.array_equal(tifffile.imread(io.BytesIO(got(lab, "out/a_labels.tif"))), labels)


def test_evaluate_tiles_and_tables(lab, tmp_path):
    image, labels = simulate_nuclei((128, 128), seed=1)
    for folder, name in (("truth", "a.tif"), ("pred", "a_labels.tif")):
        put(lab, f"{folder}/{name}", write_labels(tmp_path / name, labels).read_bytes())
    printed = cellseg(
        "evaluate", "--truth", "s3://lab/truth", "--pred", "s3://lab/pred", "--json", "s3://lab/scores.json"
    )
    assert "1.000" in printed and json.loads(got(lab, "scores.json"))
    colour = np.repeat(simulate_nuclei((512, 512), seed=2)[0][..., None] // 256, 3, -1).astype(np.uint8)
    colour[..., 1] //= 3
    put(lab, "slides/s.tif", tiff(colour, tile=(256, 256), photometric="rgb"))
    printed = cellseg("tiles", "create", "s3://lab/slides", "--out", "s3://lab/tiles", "--reduce", 1, "--threshold", 0)
    assert "s3://lab/tiles/manifest.csv" in printed
    assert {"tiles/manifest.csv", "tiles/stats.json"} < {*names(lab, "tiles/")}
    assert str(tmp_path).encode() not in got(lab, "tiles/manifest.csv")
    stack = np.repeat(simulate_nuclei((64, 64), seed=3)[0][None], 4, 0)
    write_image(tmp_path / "z.tif", stack, "ZYX", (1, 1, 1))
    write_labels(tmp_path / "m.tif", np.ones(stack.shape, np.uint16), (1, 1, 1))
    put(lab, "stacks/z.tif", (tmp_path / "z.tif").read_bytes())
    put(lab, "stacks/m.tif", (tmp_path / "m.tif").read_bytes())
    put(lab, "stacks/table.csv", b"image,mask\nz.tif,m.tif\n")
    cellseg("patches", "s3://lab/stacks/table.csv", "--out", "s3://lab/patches", "--size", "4,32,32")
    assert any(one.endswith(".csv") for one in names(lab, "patches/"))


@pytest.mark.parametrize("verb", ["count", "segment3d"])
def test_other_tasks(lab, tmp_path, verb):
    image, (kept,) = simulate_nuclei((64, 64), seed=3)[0], ("a.tif",)
    write_image(
        tmp_path / kept,
        np.repeat(image[None], 4, 0) if verb == "segment3d" else image,
        "ZYX" if verb == "segment3d" else "YX",
        0.5,
    )
    put(lab, f"in/{kept}", (tmp_path / kept).read_bytes())
    cellseg(verb, "s3://lab/in", "--out", f"s3://lab/{verb}", "--device", "cpu")
    table = pd.read_csv(io.BytesIO(got(lab, f"{verb}/{'stacks' if verb == 'segment3d' else 'counts'}.csv")))
    assert table["file"].tolist() == ["s3://lab/in/a.tif"]


def test_slide(lab):
    colour = np.full((512, 512, 3), 240, np.uint8)
    colour[100:300, 100:300] = (200, 120, 190)
    put(
        lab,
        "in/s.tif",
        tiff(colour, tile=(256, 256), photometric="rgb", resolution=(20000, 20000), resolutionunit="CENTIMETER"),
    )
    cellseg("slide", "s3://lab/in/s.tif", "--out", "s3://lab/slide", "--device", "cpu")
    assert "s3://lab/in/s.tif" in got(lab, "slide/counts.csv").decode()


def test_model_versions(lab):
    assert "pushed: s3://lab/models/nuclei@v1.0" in cellseg("model", "push", "nuclei", "s3://lab/models")
    assert "never changed" in cellseg("model", "push", "nuclei", "s3://lab/models", "--version", "1", code=2)
    assert "nuclei@v1.0" in cellseg("model", "versions", "s3://lab/models")
    assert sorted(names(lab, "models/")) == ["models/nuclei/nuclei-v1.0.zip", "models/nuclei/v1.0.json"]
    folder = cellseg("model", "pull", "s3://lab/models", "nuclei@1.0").strip()
    assert os.path.isfile(os.path.join(folder, "weights.safetensors"))
    put(lab, "in/a.tif", nuclei(1)[0])
    cellseg("segment", "s3://lab/in", "--out", "s3://lab/out", "--model", "s3://lab/models/nuclei", "--device", "cpu")
    assert "there is no version of other" in cellseg("model", "versions", "s3://lab/models", "other", code=2)


# What goes wrong


def test_errors_of_s3(lab, monkeypatch, server):
    def line(*words):
        printed = cellseg(*words, code=2).strip().splitlines()
        assert len(printed) == 1, printed
        return printed[0]

    run_into = ["--out", "s3://lab/out", "--model", "otsu"]
    assert "s3://lab/nothing: there is no file or folder" in line("segment", "s3://lab/nothing", *run_into)
    assert "there is no bucket nobody" in line("segment", "s3://nobody/in", *run_into)
    put(lab, "in/a.tif", nuclei(1)[0])
    assert "there is no bucket nobody" in line("segment", "s3://lab/in", "--out", "s3://nobody/out", "--model", "otsu")
    assert "no protocol 'x3'" in line("segment", "x3://lab/in", *run_into)
    assert "pip install gcsfs" in line("segment", "gs://lab/in", *run_into)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "AWS_PROFILE names a profile" in line("segment", "s3://lab/in", *run_into)
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no credentials were found" in line("segment", "s3://lab/in", *run_into)


def test_refused_credentials(lab, monkeypatch):
    with s3_server(authorised=True) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        printed = (
            cellseg("segment", "s3://lab/in", "--out", "s3://lab/out", "--model", "otsu", code=2).strip().splitlines()
        )
        assert len(printed) == 1 and "access was refused" in printed[0], printed


def test_profile_names_the_server(lab, server, tmp_path, monkeypatch):
    put(lab, "in/a.tif", nuclei(1)[0])
    (tmp_path / "config").write_text(
        f"[profile mine]\nendpoint_url = {server['AWS_ENDPOINT_URL']}\nregion = us-east-1\n"
    )
    (tmp_path / "credentials").write_text("[mine]\naws_access_key_id = a\naws_secret_access_key = b\n")
    for name in server:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert read_image("s3://lab/in/a.tif").shape == (128, 128)


def test_nobody_answers(lab, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    printed = cellseg("segment", "s3://lab/in", "--out", "s3://lab/out", "--model", "otsu", code=2).strip().splitlines()
    assert len(printed) == 1 and "the server cannot be reached" in printed[0]
    monkeypatch.setattr(store, "TRIES", 1)
    with pytest.raises(ConnectionError, match="http://127.0.0.1:9/a.tif: the server cannot be reached"):
        read_image("http://127.0.0.1:9/a.tif?token=secret")


def test_web_addresses(web, tmp_path, monkeypatch):
    content = nuclei(2)
    web.files = {"/in/a.tif": content[0], "/in/b.tif": content[1], "/in/notes.txt": b"", "/page": b""}
    out = tmp_path / "out"
    cellseg("segment", f"{web.url}/in/", "--out", out, "--model", "otsu")
    assert pd.read_csv(out / "counts.csv")["file"].tolist() == [f"{web.url}/in/a.tif", f"{web.url}/in/b.tif"]
    secret = web.url.replace("//", "//ada:secret@") + "/in/a.tif?X-Amz-Signature=0123"
    cellseg("segment", secret, "--out", tmp_path / "signed", "--model", "otsu")
    written = b"".join(one.read_bytes() for one in (tmp_path / "signed").rglob("*") if one.is_file())
    assert b"secret" not in written and b"0123" not in written and f"{web.url}/in/a.tif".encode() in written
    lost = cellseg("segment", f"{web.url}/in/c.tif", "--out", out, "--model", "otsu", code=2)
    assert f"{web.url}/in/c.tif: there is no file or folder" in lost
    web.refused.add("/in/b.tif")
    store._CHECKED.clear()
    assert "access was refused" in cellseg(
        "segment", f"{web.url}/in/b.tif", "--out", tmp_path / "b", "--model", "otsu", code=2
    )
    monkeypatch.setattr(web, "listing", lambda path: b"<p>Welcome</p>")
    assert "is a page that lists no files" in cellseg(
        "segment", f"{web.url}/in/", "--out", out, "--model", "otsu", code=2
    )
    assert "nothing can be written" in cellseg(
        "segment", f"{web.url}/in/a.tif", "--out", f"{web.url}/out", "--model", "otsu", code=2
    )


def test_connection_that_breaks_off(web, monkeypatch):
    web.files = {"/a.tif": nuclei(1)[0]}
    web.broken = {"/a.tif": 1}
    assert read_image(f"{web.url}/a.tif").shape == (128, 128)  # the second time, all of it came
    web.files, web.broken = {"/b.tif": nuclei(2)[1]}, {"/b.tif": 100}
    with pytest.raises(ConnectionError, match="/b.tif: the server cannot be reached, or the connection broke off"):
        read_image(f"{web.url}/b.tif")
    assert not [
        one for one in store.store_folder().rglob("*") if "b.tif" in one.name or one.name.startswith(".cellseg-")
    ]


def test_copy_is_as_new_as_the_file(web):
    first, second = nuclei(2)
    web.files = {"/a.tif": first}
    assert np.array_equal(read_image(f"{web.url}/a.tif").pixels, tifffile.imread(io.BytesIO(first)))
    sent = web.sent
    store._CHECKED.clear()
    read_image(f"{web.url}/a.tif")
    assert web.sent == sent  # only asked whether it is the same
    web.files = {"/a.tif": second}
    store._CHECKED.clear()
    assert np.array_equal(read_image(f"{web.url}/a.tif").pixels, tifffile.imread(io.BytesIO(second)))


# Regions


def large(px: int = 4096) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 4096, (px, px), np.uint16)


def test_region_of_a_tiled_tiff(web):
    pixels = large()
    for name, how in {
        "/plain.tif": {},
        "/packed.tif": {"compression": "zlib"},
        "/own.ome.tif": {"compression": "zlib", "metadata": {"axes": "YX"}},
    }.items():
        web.files[name] = tiff(pixels, tile=(512, 512), ome=name.endswith("ome.tif"), **how)
        web.sent = 0
        with open_plane(f"{web.url}{name}") as plane:
            region = plane.read(1500, 2012, 700, 1212)
        assert np.array_equal(region, pixels[1500:2012, 700:1212])
        assert web.sent < len(web.files[name]) / 8, name


def test_server_without_ranges_sends_all(web):
    pixels = large(2560)
    web.files, web.ranges = {"/a.tif": tiff(pixels, tile=(512, 512))}, False
    with open_plane(f"{web.url}/a.tif") as plane:
        assert np.array_equal(plane.read(0, 9, 0, 9), pixels[:9, :9])


def test_strips_are_copied(web):
    pixels = large(2560)
    web.files = {"/a.tif": tiff(pixels)}
    with open_plane(f"{web.url}/a.tif") as plane:
        assert np.array_equal(plane.read(7, 9, 0, 9), pixels[7:9, :9])


def test_region_of_ome_zarr(lab, web, tmp_path):
    pixels = large(2048)
    write_image(tmp_path / "a.zarr", pixels, "YX", 0.5)
    web.files = {
        f"/a.zarr/{one.relative_to(tmp_path / 'a.zarr').as_posix()}": one.read_bytes()
        for one in (tmp_path / "a.zarr").rglob("*")
        if one.is_file()
    }
    upload(lab, tmp_path / "a.zarr", "a.zarr")
    total = sum(map(len, web.files.values()))
    for url in (f"{web.url}/a.zarr", "s3://lab/a.zarr"):
        with open_image(url) as image:
            assert image.pixel_size_um == (0.5, 0.5)
            assert np.array_equal(image.read((slice(500, 700), slice(0, 100))), pixels[500:700, :100])
    assert web.sent < total / 4
    assert find_images("s3://lab") == [store.stand_in("s3://lab/a.zarr")]


def test_batches_of_functions(lab):
    """Python takes addresses as text and as paths."""
    from pathlib import Path

    put(lab, "in/a.tif", nuclei(1)[0])
    summary = run(Segment(model="otsu"), Path("s3://lab/in"), Path("s3://lab/out"))
    assert str(summary.report) == "s3://lab/out/report.html" and summary.n_done == 1
    assert places.url_of(summary.out) == "s3://lab/out"


def test_functions_take_addresses(lab, tmp_path):
    from cellseg_nb.data.points import read_points
    from cellseg_nb.data.slide_tiles import create_tiles
    from cellseg_nb.run.evaluate import evaluate_folders
    from cellseg_nb.train.settings import read_config

    labels = simulate_nuclei((64, 64), seed=1)[1]
    put(lab, "truth/a.tif", write_labels(tmp_path / "a.tif", labels).read_bytes())
    put(lab, "points.csv", b"image,y,x\na.tif,3,4\n")
    put(lab, "config.yml", b"name: mine\n")
    put(
        lab,
        "slides/s.tif",
        tiff(np.zeros((256, 256, 3), np.uint8) + np.uint8([200, 80, 90]), tile=(256, 256), photometric="rgb"),
    )
    scores = evaluate_folders("s3://lab/truth", "s3://lab/truth")
    assert scores.groups["mean_ap"].tolist() == [1]
    assert read_points("s3://lab/points.csv")[["y", "x"]].to_numpy().tolist() == [[3, 4]]
    assert read_config("s3://lab/config.yml").name == "mine"
    made = create_tiles("s3://lab/slides", None, "s3://lab/tiles", reduce=1)
    assert len(made.table) == 1 and "tiles/manifest.csv" in names(lab)


def test_help_is_text():
    """What prints bytes where it can must see that this stream takes text alone."""
    done = subprocess.run([*CELLSEG, "segment", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.lstrip().startswith("Usage: ")
