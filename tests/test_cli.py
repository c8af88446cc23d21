"""The command `cellseg`, as a person uses it: results, error lines, exit codes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from typer.testing import CliRunner

import cellseg_nb
from cellseg_nb.data.io import read_image, read_labels, write_image, write_labels
from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.run.cli import app

BUNDLE = Path(cellseg_nb.__file__).parent / "bundles" / "nuclei" / "model.json"
START = [sys.executable, "-c", "from cellseg_nb.run.cli import main; main()"]


def run(*arguments, code=0):
    """Run a verb in this process; errors must be free of tracebacks."""
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


def error_of(*arguments, code=2):
    """The only line on the error stream of a verb that fails."""
    result = run(*arguments, code=code)
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.strip()


@pytest.fixture
def images(tmp_path):
    """Two simulated images with their truth."""
    for number in (1, 2):
        image, labels = simulate_nuclei((96, 112), n_nuclei=6, seed=number)
        write_image(tmp_path / "images" / f"cell{number}.tif", image, "YX", pixel_size_um=0.5)
        write_labels(tmp_path / "masks" / f"cell{number}_masks.tif", labels)
    return tmp_path / "images"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


# --- start ---------------------------------------------------------------------------------------


def test_help_is_quick_and_loads_nothing_heavy():
    code = "import sys, cellseg_nb, cellseg_nb.run.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = "torch fastai tensorflow monai pandas numba skimage matplotlib scipy numpy pydantic rich kedro"
    assert not set(heavy.split()) & set(loaded.stdout.split())
    before = os.times()
    subprocess.run([*START, "--help"], capture_output=True, check=True)
    after = os.times()  # processor time, which other programs on the machine hardly change
    used = after.children_user - before.children_user + after.children_system - before.children_system
    assert used < 0.5


def test_version_and_help_name_every_verb():
    assert run("--version").stdout == f"cellseg {cellseg_nb.__version__}\n"
    shown = run("--help").stdout
    verbs = "demo segment evaluate train segment3d graph graph-train patches init verify data model"
    for verb in verbs.split():
        assert f"  {verb} " in shown


@pytest.mark.parametrize("line", ["frobnicate", "segment", "segment a.tif --nonsense", "evaluate --truth x"])
def test_usage_errors_exit_2(line):
    run(*line.split(), code=2)


def test_without_a_command_the_first_three_are_shown():
    shown = run().stdout
    assert all(f"cellseg {verb}" in shown for verb in ("demo", "segment", "doctor")) and shown.count("\n") < 20


def test_doctor_ends_with_1_where_something_is_to_do(monkeypatch, tmp_path):
    from cellseg_nb.run import doctor

    monkeypatch.setattr(doctor, "CHECKS", (doctor._versions, doctor._disk, doctor._models))
    assert "TO DO" not in run("doctor", "--out", tmp_path).stdout
    monkeypatch.setattr(doctor, "LEAST_DISK_GB", 1e9)
    shown = run("doctor", "--out", tmp_path, code=1).stdout
    assert "TO DO  free disk" in shown and "make room, or name another folder with --out" in shown
    assert shown.count("free disk") == 2 and shown.rstrip().endswith("```")  # as it comes, and to paste


# --- segment -------------------------------------------------------------------------------------


def test_segment_needs_no_option_but_the_model(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = run("segment", images / "cell1.tif", "--model", "otsu")
    assert "objects in 1 image\n" in shown.stdout and "cellseg_out" in shown.stdout
    assert sorted(path.name for path in Path("cellseg_out").iterdir()) == [
        ".resume",
        "cell1_labels.tif",
        "cell1_overlay.png",
        "counts.csv",
        "objects.csv",
        "report.html",
        "run.json",
    ]


def test_segment_tables_agree_with_the_label_images(images, out):
    run("segment", images, "--out", out, "--model", "otsu")
    counts, objects = pd.read_csv(out / "counts.csv"), pd.read_csv(out / "objects.csv")
    assert list(counts["image"]) == ["cell1", "cell2"]
    for row in counts.itertuples():
        labels = read_labels(out / f"{row.image}_labels.tif")
        assert labels.shape == (96, 112) and labels.max() == row.count == (objects["image"] == row.image).sum()
        assert row.density_per_mm2 == pytest.approx(row.count / (96 * 112 * 0.25e-6))
    facts = json.loads((out / "run.json").read_text())
    assert facts["model"]["name"] == "otsu" and facts["settings"]["min_area_px"] is None
    assert len(facts["inputs"]) == 2 and len(facts["inputs"][0]["sha256"]) == 64
    assert facts["versions"]["cellseg_nb"] == cellseg_nb.__version__
    assert set(facts["seconds"]) == {"imports", "postprocessing", "rest"}
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg") == 2 and "http" not in page and "<script" not in page


def test_bad_image_among_good_ones(images, out):
    (images / "notes.tif").write_text("these are notes")
    whole = (images / "cell1.tif").read_bytes()
    (images / "broken.tif").write_bytes(whole[: len(whole) // 2])
    result = run("segment", images, images / "gone.tif", "--out", out, "--model", "otsu", code=1)
    assert "in 2 images" in result.stdout
    lines = result.stderr.strip().split("\n")
    assert len(lines) == 3
    assert lines[0] == f"error: {images / 'gone.tif'}: there is no file or folder"
    assert lines[1].startswith(f"error: {images / 'broken.tif'}: ") and "cut off" in lines[1]
    assert lines[2].startswith(f"error: {images / 'notes.tif'}: cannot be read")
    assert (out / "cell2_labels.tif").exists() and not (out / "broken_labels.tif").exists()
    assert len(json.loads((out / "run.json").read_text())["failures"]) == 3
    assert "Not done: 3" in (out / "report.html").read_text()


def test_nothing_could_be_done(images, out, tmp_path):
    line = error_of("segment", tmp_path / "none.tif", "--out", out, "--model", "otsu")
    assert line == f"error: {tmp_path / 'none.tif'}: there is no file or folder"
    assert not out.exists()
    (tmp_path / "notes.tif").write_text("these are notes")
    line = error_of("segment", tmp_path / "notes.tif", "--out", out, "--model", "otsu")
    assert line.startswith(f"error: {tmp_path / 'notes.tif'}: cannot be read")
    assert not out.exists()
    (tmp_path / "empty").mkdir()
    assert "there is no image in the folder" in error_of("segment", tmp_path / "empty", "--model", "otsu")
    line = error_of("segment", images, "--out", images / "cell1.tif", "--model", "otsu")
    assert line == f"error: the output {images / 'cell1.tif'} is a file; name a folder"
    assert "no model 'nucleus'" in error_of("segment", images, "--out", out, "--model", "nucleus")


@pytest.mark.parametrize(
    "options, reason",
    [
        (["--threshold", "2"], "--threshold: Input should be less than 1 (it is 2.0)"),
        (["--pixel-size", "0"], "Input should be greater than 0 (it is '0')"),
        (["--min-area", "5", "--min-area-um2", "5"], "smallest area in px or in µm², not both"),
        (["--tile", "64", "--overlap", "64"], "64 px, must be smaller than their edge, 64 px"),
        (["--tile", "100"], "the overlap of the tiles, 128 px, must be smaller than their edge"),
        (["--z", "top"], "(it is 'top')"),
        (["--large-mpx", "0"], "--large-mpx: Input should be greater than 0 (it is 0.0)"),
        (["--disagreement"], "needs two models or more"),
        (["--model", "nuclei", "--model", "otsu"], "'otsu' is no network and cannot be averaged"),
        (["--model", "nuclei", "--model", "nucleus"], "no model 'nucleus'"),
    ],
)
def test_settings_that_make_no_sense(images, out, options, reason):
    assert reason in error_of("segment", images, "--out", out, *options)
    assert not out.exists()


def test_resume(images, out, monkeypatch):
    from cellseg_nb.run.tasks.segment import Segment

    process, done = Segment.process, []

    def stop_at_the_second(self, item):
        if done:
            raise KeyboardInterrupt
        done.append(item.name)
        return process(self, item)

    monkeypatch.setattr(Segment, "process", stop_at_the_second)
    stopped = run("segment", images, "--out", out, "--model", "otsu", code=130)
    assert stopped.stderr.startswith("stopped; what was finished is kept")
    monkeypatch.setattr(Segment, "process", process)
    before = (out / "cell1_labels.tif").stat().st_mtime_ns
    assert "in 2 images, 1 finished before" in run("segment", images, "--out", out, "--model", "otsu").stdout
    assert (out / "cell1_labels.tif").stat().st_mtime_ns == before
    # other settings, another picture under the same path, and --overwrite are computed
    again = run("segment", images, "--out", out, "--model", "otsu", "--min-area", 60)
    assert "finished before" not in again.stdout
    write_image(images / "cell1.tif", np.zeros((50, 50), np.uint16), "YX")
    again = run("segment", images, "--out", out, "--model", "otsu", "--min-area", 60)
    assert "1 finished before" in again.stdout
    assert list(pd.read_csv(out / "counts.csv")["count"])[0] == 0
    again = run("segment", images, "--out", out, "--model", "otsu", "--min-area", 60, "--overwrite")
    assert "finished before" not in again.stdout


def test_labels_and_tables_of_others_are_left_alone(images, tmp_path):
    drawn = images / "cell1_labels.tif"
    write_labels(drawn, np.ones((96, 112), np.uint16))
    kept = drawn.read_bytes()
    again = ["segment", images, "--out", images, "--model", "otsu"]
    line = error_of(*again, code=1)
    assert line == (
        f"error: {images / 'cell1.tif'}: {drawn} was not made by this command; choose another --out, or --overwrite"
    )
    assert drawn.read_bytes() == kept
    run(*again, "--overwrite")
    assert drawn.read_bytes() != kept
    run(*again)  # its own results are no obstacle
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "counts.csv").write_text("cell1,7\n")
    line = error_of("segment", images, "--out", tmp_path / "mine", "--model", "otsu")
    assert "counts.csv was not made by this command" in line
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["counts.csv"]


def test_resume_does_not_mix_two_runs(images, out, monkeypatch):
    from cellseg_nb.run.tasks import segment as task

    first = ["segment", images / "cell1.tif", "--out", out, "--model", "otsu"]
    run(*first)
    labels = read_labels(out / "cell1_labels.tif")

    def stop(*_, **__):
        raise KeyboardInterrupt

    write = task.write_overlay
    monkeypatch.setattr(task, "write_overlay", stop)  # other labels are written, nothing else
    run(*first, "--min-area", 700, code=130)
    monkeypatch.setattr(task, "write_overlay", write)
    assert (read_labels(out / "cell1_labels.tif") != labels).any()
    assert "finished before" not in run(*first).stdout
    assert (read_labels(out / "cell1_labels.tif") == labels).all()


def test_debug_shows_why_a_file_failed(out, tmp_path):
    (tmp_path / "notes.tif").write_text("these are notes")
    line = ["segment", tmp_path / "notes.tif", "--out", out, "--model", "otsu"]
    run(*line, code=2)
    shown = CliRunner().invoke(app, [*map(str, line), "--debug"])
    assert shown.exit_code == 2 and "Traceback" in shown.stderr and "read_plane" in shown.stderr


def test_files_of_other_types_and_words_in_any_case(images, out):
    (images / "cell3.lif").write_bytes(b"a microscope's own format")
    shown = run("segment", images, "--out", out, "--model", "otsu")
    assert shown.stderr.count("\n") == 1
    assert "1 file of another type was not read (.lif)" in shown.stderr
    tifffile.imwrite(images / "deep.tif", np.zeros((5, 40, 50), np.uint16), metadata=None)
    deep = ["segment", images / "deep.tif", "--out", out, "--model", "otsu"]
    assert "--axes" in error_of(*deep) and "axes=" not in error_of(*deep)
    shown = run(*deep, "--axes", "zyx", "--z", "MAX")
    assert "0 objects in 1 image\n" in shown.stdout


def test_defaults_in_the_help_are_the_true_ones():
    from cellseg_nb.run.analyse import SegmentSettings

    shown = " ".join(run("segment", "--help").stdout.split())
    for name in ("tile_px", "overlap_px"):
        assert f"pixels. [default: {SegmentSettings.model_fields[name].default}]" in shown
    assert f"megapixels. [default: {SegmentSettings.model_fields['large_mpx'].default}]" in shown


def test_error_of_a_library_stops_one_image_only(images, out, monkeypatch):
    from cellseg_nb.run.tasks.segment import Segment

    process = Segment.process

    def fail_at_the_first(self, item):
        if item.name == "cell1":
            raise RuntimeError("out of\nmemory")
        return process(self, item)

    monkeypatch.setattr(Segment, "process", fail_at_the_first)
    line = error_of("segment", images, "--out", out, "--model", "otsu", code=1)
    assert line == f"error: {images / 'cell1.tif'}: RuntimeError: out of memory"
    assert (out / "cell2_labels.tif").exists()


def test_equal_names_from_two_folders(images, out, tmp_path):
    write_image(tmp_path / "other" / "cell1.png", np.zeros((20, 20), np.uint8), "YX")
    line = error_of("segment", images, tmp_path / "other", "--out", out, "--model", "otsu", code=1)
    assert line == (
        f"error: {tmp_path / 'other' / 'cell1.png'}: it would write cell1_labels.tif like "
        f"{images / 'cell1.tif'}; choose another output folder for it, or rename it"
    )
    assert list(pd.read_csv(out / "counts.csv")["image"]) == ["cell1", "cell2"]
    kept = (out / "cell1_labels.tif").read_bytes()
    assert "another file of this name" in error_of("segment", tmp_path / "other", "--out", out, "--model", "otsu")
    assert (out / "cell1_labels.tif").read_bytes() == kept


def test_channels_planes_and_units(out, tmp_path):
    image, _ = simulate_nuclei((64, 80), n_nuclei=4, seed=3)
    stack = np.stack([image, image // 2])
    write_image(tmp_path / "two.ome.tif", stack, "CYX", channels=["DAPI", "GFP"])
    line = error_of("segment", tmp_path / "two.ome.tif", "--out", out, "--model", "otsu")
    assert "DAPI" in line and "GFP" in line
    for channel in ("DAPI", "0"):
        run(
            "segment",
            tmp_path / "two.ome.tif",
            "--out",
            out,
            "--model",
            "otsu",
            "--channel",
            channel,
        )
    assert (out / "two_labels.tif").exists()
    dyes = np.stack([image, image * 0])  # a channel may be called by a number
    write_image(tmp_path / "dyes.ome.tif", dyes, "CYX", channels=["405", "488"])
    dyes = ["segment", tmp_path / "dyes.ome.tif", "--out", out, "--model", "otsu", "--channel"]
    assert "0 objects" in run(*dyes, "488").stdout
    assert "0 objects" not in run(*dyes, "405").stdout
    write_image(tmp_path / "deep.ome.tif", stack, "ZYX")
    assert "z" in error_of("segment", tmp_path / "deep.ome.tif", "--out", out, "--model", "otsu")
    run("segment", tmp_path / "deep.ome.tif", "--out", out, "--model", "otsu", "--z", "max")
    tifffile.imwrite(tmp_path / "plain.tif", image)
    small = [
        "segment",
        tmp_path / "plain.tif",
        "--out",
        out,
        "--model",
        "otsu",
        "--min-area-um2",
        "30",
    ]
    assert "needs the pixel size" in error_of(*small)
    run(*small, "--pixel-size", "0.5")
    areas = pd.read_csv(out / "objects.csv")["area_um2"]
    assert len(areas) and areas.min() >= 30


def test_colour_warns_once(out, tmp_path):
    image, _ = simulate_nuclei((64, 80), n_nuclei=4, seed=3)
    colour = np.stack([image // 300, image // 400, image // 500], axis=-1).astype(np.uint8)
    for name in ("a", "b"):
        write_image(tmp_path / "colour" / f"{name}.png", colour, "YXC")
    shown = run("segment", tmp_path / "colour", "--out", out, "--model", "otsu")
    assert shown.stderr.count("in colour") == 1 and "2 of 2 images are in colour" in shown.stderr


def test_names_are_escaped_in_the_report(images, out):
    (images / "cell1.tif").rename(images / "<b>&1.tif")
    run("segment", images, "--out", out, "--model", "otsu")
    page = (out / "report.html").read_text()
    assert "&lt;b&gt;&amp;1" in page and "<b>&1" not in page


@pytest.mark.skipif(not BUNDLE.exists(), reason="the model nuclei is not in this version")
def test_model_nuclei(images, out, tmp_path):
    run("segment", images, "--out", out, "--diameter", 24)
    shown = run("evaluate", "--truth", tmp_path / "masks", "--pred", out, "--json", tmp_path / "scores.json")
    assert "AP@.5" in shown.stdout
    assert json.loads((tmp_path / "scores.json").read_text())["groups"][0]["ap_50"] > 0.3
    assert "nuclei " in run("model", "list").stdout
    assert json.loads(run("model", "show", "nuclei").stdout)["licence"]
    line = error_of("segment", images, "--out", out, "--diameter", 0.1)
    assert "a diameter of 0.1 px would rescale the image" in line
    (tmp_path / "bundle").mkdir()
    shutil.copy(BUNDLE, tmp_path / "bundle")
    line = error_of("segment", images, "--out", out, "--model", tmp_path / "bundle")
    assert line.endswith("weights.safetensors is missing; the bundle is incomplete")


# --- exports, several models, large and unusual images ---------------------------------------------


def test_exports_are_read_back_and_added_later(images, out):
    from cellseg_nb.data.annotations import read_geojson, read_roi_zip

    line = ["segment", images, "--out", out, "--model", "otsu"]
    run(*line, "--roi")
    labels = read_labels(out / "cell1_labels.tif")
    assert (read_roi_zip(out / "cell1_rois.zip", labels.shape) == labels).all()
    assert not (out / "cell1.geojson").exists()
    assert "2 finished before" in run(*line, "--roi", "--geojson", "--zarr").stdout
    assert (read_geojson(out / "cell1.geojson", labels.shape) == labels).all()
    assert (read_labels(out / "cell1_labels.zarr") == labels).all()
    run("evaluate", "--truth", images.parent / "masks", "--pred", out)  # the copy does not count
    area = json.loads((out / "cell1.geojson").read_text())["features"][0]["properties"]
    table = pd.read_csv(out / "objects.csv")
    assert table["area_um2"][0] in dict(area)["measurements"].values()
    # other settings: exports that are not asked for any more would not fit and are removed
    run(*line, "--min-area", 60, "--roi")
    assert not (out / "cell1.geojson").exists() and not (out / "cell1_labels.zarr").exists()
    labels = read_labels(out / "cell1_labels.tif")
    assert (read_roi_zip(out / "cell1_rois.zip", labels.shape) == labels).all()


def test_exports_of_others_are_left_alone(images, out):
    line = ["segment", images / "cell1.tif", "--out", out, "--model", "otsu"]
    run(*line)
    (out / "cell1.geojson").write_text("drawn in QuPath")
    assert "cell1.geojson was not made by this command" in error_of(*line, "--geojson", code=2)
    assert (out / "cell1.geojson").read_text() == "drawn in QuPath"
    run(*line, "--min-area", 60)
    assert (out / "cell1.geojson").read_text() == "drawn in QuPath"
    run(*line, "--geojson", "--overwrite")
    assert (out / "cell1.geojson").read_text() != "drawn in QuPath"


def test_several_models_and_flips(images, out):
    line = ["segment", images / "cell1.tif", "--out", out, "--model", "nuclei"]
    run(*line, "--model", "nuclei", "--flips", "--disagreement", "--diameter", 24)
    objects, facts = pd.read_csv(out / "objects.csv"), json.loads((out / "run.json").read_text())
    assert len(objects) and objects["confidence"].between(0, 1).all()
    assert facts["model"]["name"] == "nuclei + nuclei" and facts["settings"]["flips"]
    disagreement = tifffile.imread(out / "cell1_disagreement.tif")
    assert disagreement.shape == (96, 112) and disagreement.max() < 0.01  # twice the same model
    assert error_of(*line[:-1], "otsu", "--flips").endswith(
        "the model 'otsu' has no flips; leave it out or choose a network"
    )


def test_large_images_give_the_same_piece_by_piece(images, out, tmp_path):
    line = ["segment", images / "cell1.tif", "--model", "nuclei", "--tile", 64, "--overlap", 32]
    run(*line, "--out", out)
    pieces = [*line, "--out", tmp_path / "pieces", "--large-mpx", 0.01]
    shown = run(*pieces, "--geojson")
    assert "objects in 1 image\n" in shown.stdout
    labels = read_labels(tmp_path / "pieces" / "cell1_labels.ome.tif")
    assert (labels == read_labels(out / "cell1_labels.tif")).all()
    whole, parts = (pd.read_csv(one / "objects.csv") for one in (out, tmp_path / "pieces"))
    assert list(whole.columns) == list(parts.columns)
    pd.testing.assert_frame_equal(whole, parts, check_dtype=False, rtol=1e-3, atol=1e-3)
    counts = [pd.read_csv(one / "counts.csv") for one in (out, tmp_path / "pieces")]
    pd.testing.assert_frame_equal(*counts, rtol=1e-3)
    assert (tmp_path / "pieces" / "report.html").read_text().count("data:image/jpeg") == 1
    assert "1 finished before" in run(*pieces).stdout
    files = sorted(path.name for path in (tmp_path / "pieces").iterdir())
    assert files[:4] == [".resume", "cell1.geojson", "cell1_labels.ome.tif", "cell1_overlay.png"]
    run(*pieces, "--zarr", "--overwrite")
    assert (read_labels(tmp_path / "pieces" / "cell1_labels.zarr") == labels).all()
    assert not (tmp_path / "pieces" / "cell1_labels.ome.tif").exists()
    line = error_of(*pieces, "--model", "nuclei", "--overwrite")
    assert "such images are segmented with one model" in line


def test_images_unlike_the_training_are_flagged(images, out, tmp_path):
    from cellseg_nb.models.bundle import load_bundle, save_bundle
    from cellseg_nb.segment.familiarity import describe, learn_pictures
    from cellseg_nb.segment.image import segment_image

    bundle, known = load_bundle("nuclei"), []
    for seed in range(10, 40):
        image, _ = simulate_nuclei((96, 112), n_nuclei=4 + seed % 8, seed=seed)
        prepared = bundle.specification.normalisation.prepare(image)
        known.append(describe(prepared, segment_image(image, bundle).labels, 20))
    about = {"known_pictures": learn_pictures(known)}
    save_bundle(tmp_path / "m", bundle.network, bundle.specification.model_copy(update=about))
    inverted = 65_535 - tifffile.imread(images / "cell1.tif")
    write_image(images / "inverted.tif", inverted, "YX", pixel_size_um=0.5)
    shown = run("segment", images, "--out", out, "--model", tmp_path / "m")
    assert shown.stderr.count("warning: ") == 1
    assert "1 of 3 images is unlike those the model was trained on (inverted: things are darker" in shown.stderr
    counts = pd.read_csv(out / "counts.csv").set_index("image")
    assert counts["unlike_training"].to_dict() == {
        "cell1": False,
        "cell2": False,
        "inverted": True,
    }
    assert "try --invert" in counts["unlike_because"]["inverted"]
    assert "Unlike the training images: 1" in (out / "report.html").read_text()
    about = {"known_pictures": None}  # a model that does not know gives no flag
    save_bundle(tmp_path / "m", bundle.network, bundle.specification.model_copy(update=about))
    shown = run("segment", images, "--out", out, "--model", tmp_path / "m")
    assert "warning: " not in shown.stderr
    assert "unlike_training" not in pd.read_csv(out / "counts.csv")


# --- stacks --------------------------------------------------------------------------------------

WINDOW = ("--window", "8,48,48", "--channel", 0)


@pytest.fixture(scope="module")
def germline(tmp_path_factory):
    """Two simulated stacks with their masks, and a small network with random weights."""
    import torch

    from cellseg_nb.models.bundle import StackSpecification, save_bundle
    from cellseg_nb.models.unet3d import UNet3D

    folder = tmp_path_factory.mktemp("germline")
    size = ["--size", "12,72,80", "--seed", 5]
    shown = run("data", "simulate", "germline", "--n", 2, *size, "--out", folder)
    assert "2 stacks with label images" in shown.stdout
    torch.manual_seed(0)
    about = StackSpecification(name="random", network={"f_maps": 8, "levels": 2})
    save_bundle(folder / "model", UNet3D(f_maps=8, levels=2), about)
    return folder


def segment3d(germline, *arguments, **how):
    return run("segment3d", "--model", germline / "model", *WINDOW, *arguments, **how)


def error3d(germline, *arguments, code=2):
    result = segment3d(germline, *arguments, code=code)
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr.strip()


def test_simulated_germlines_in_every_order_of_axes(germline, tmp_path):
    table = pd.read_csv(germline / "table.csv")
    assert list(table.columns) == ["image", "mask"] and len(table) == 2
    first = tifffile.imread(germline / table["image"][0])
    assert first.shape == (2, 12, 72, 80)
    size = ["--size", "12,72,80", "--seed", 5, "--n", 1, "--out"]
    for axes, same in (("ZCYX", first.swapaxes(0, 1)), ("ZYX", first[0])):
        run("data", "simulate", "germline", *size, tmp_path / axes, "--axes", axes)
        assert (tifffile.imread(tmp_path / axes / table["image"][0]) == same).all()
    simulate = ["data", "simulate", "--out", tmp_path / "x"]
    assert "axes 'XYZ' are unknown" in error_of(*simulate, "germline", "--axes", "XYZ")
    assert "there is: nuclei, phase, germline" in error_of(*simulate, "worm")
    assert "--size takes three numbers" in error_of(*simulate, "germline", "--size", "12,72")


def test_segment3d_says_how_long_writes_volumes_and_scores(germline, out):
    shown = segment3d(germline, germline / "table.csv", "--out", out)
    first = shown.stdout.split("\n")[0]
    assert first.startswith("2 stacks, 16 windows of 8 x 48 x 48 voxels: about ")
    assert first.endswith(" in the network")
    names = [f"germline_00{n}_{what}" for n in (5, 6) for what in ("boundaries", "labels")]
    files = sorted(path.name for path in out.iterdir())
    tables = ["cells.csv", "report.html", "run.json", "scores.csv", "stacks.csv"]
    assert files == sorted([".resume", *tables, *(f"{name}.ome.tif" for name in names)])
    labels = read_labels(out / "germline_005_labels.ome.tif")
    walls = read_image(out / "germline_005_boundaries.ome.tif")
    assert labels.shape == walls.pixels.shape == (12, 72, 80)
    assert walls.pixels.dtype == np.float32 and 0 <= walls.pixels.min() <= walls.pixels.max() <= 1
    assert walls.pixel_size_um == pytest.approx((0.5, 0.2, 0.2))
    counts, cells = pd.read_csv(out / "stacks.csv"), pd.read_csv(out / "cells.csv")
    assert counts["n_objects"][0] == (cells["image"] == "germline_005").sum() == labels.max()
    assert list(pd.read_csv(out / "scores.csv").iloc[:, 0]) == [
        "germline_005",
        "germline_006",
        "all",
    ]
    assert "germline_006" in shown.stdout and "all" in shown.stdout


def test_default_model_for_stacks_finds_cells(germline, out):
    shown = run("segment3d", germline / "table.csv", "--channel", "membranes", "--out", out)
    assert "2 stacks, 2 windows of 12 x 72 x 80 voxels" in shown.stdout
    scores = pd.read_csv(out / "scores.csv").set_index("image")
    assert scores["f1_50"]["all"] > 0.6 and {"f1_10", "f1_100"} <= set(scores.columns)


def test_segment3d_resumes_and_asks_the_network_once(germline, out, monkeypatch):
    from cellseg_nb.segment import predict

    image = germline / "images" / "germline_005.ome.tif"
    segment3d(germline, image, "--out", out)
    walls = (out / "germline_005_boundaries.ome.tif").stat().st_mtime_ns
    shown = segment3d(germline, image, "--out", out)
    assert "1 finished before" in shown.stdout and "windows" not in shown.stdout
    assert not (out / "scores.csv").exists()

    def asked(*_, **__):
        raise ValueError("the network is asked")

    monkeypatch.setattr(predict, "predict_stack", asked)  # not needed with another beta
    segment3d(germline, image, "--out", out, "--beta", 0.7)
    assert (out / "germline_005_boundaries.ome.tif").stat().st_mtime_ns == walls
    assert json.loads((out / "run.json").read_text())["postprocessing"]["beta"] == 0.7
    line = error3d(germline, image, "--out", out, "--overlap", 0.5)
    assert line == f"error: {image}: the network is asked"


def test_segment3d_writes_the_other_format_without_the_network(germline, out, monkeypatch):
    from cellseg_nb.segment import predict

    image = germline / "images" / "germline_005.ome.tif"
    segment3d(germline, image, "--out", out)
    labels = read_labels(out / "germline_005_labels.ome.tif")
    monkeypatch.setattr(predict, "predict_stack", None)
    shown = segment3d(germline, image, "--out", out, "--zarr")
    assert "finished before" not in shown.stdout
    assert (read_labels(out / "germline_005_labels.zarr") == labels).all()
    assert (out / "germline_005_boundaries.zarr").exists() and not list(out.glob("*.ome.tif"))
    shown = segment3d(germline, image, "--out", out, "--zarr")
    assert "1 finished before" in shown.stdout


def test_segment3d_filters_by_the_length_of_cells(germline, out):
    image = germline / "images" / "germline_005.ome.tif"
    segment3d(germline, image, "--out", out)
    for more in ([], ["--large-mvox", 0.01]):
        segment3d(germline, image, "--out", out, "--min-axis", 1.5, "--max-axis", 400, *more)
        assert 0 < len(pd.read_csv(out / "cells.csv"))
    segment3d(germline, image, "--out", out, "--min-axis", 400)
    assert len(pd.read_csv(out / "cells.csv")) == 0


def test_segment3d_of_finished_stacks_names_a_mask_that_does_not_fit(germline, out, tmp_path):
    image = germline / "images" / "germline_005.ome.tif"
    other = germline / "images" / "germline_006.ome.tif"
    segment3d(germline, image, other, "--out", out)
    labels = read_labels(germline / "masks" / "germline_005.tif")
    write_labels(tmp_path / "turned.tif", labels.transpose(0, 2, 1))
    mask = germline / "masks" / "germline_006.tif"
    table = tmp_path / "stacks.csv"
    table.write_text(f"image,mask\n{image},turned.tif\n{other},{mask}\n")
    result = segment3d(germline, table, "--out", out, code=1)
    assert "2 finished before" in result.stdout
    assert result.stderr.strip() == (
        f"error: {table}, row 2: the mask {tmp_path / 'turned.tif'} is (12, 80, 72) and the stack "
        "(12, 72, 80) (Z, Y, X)"
    )
    assert list(pd.read_csv(out / "scores.csv")["image"]) == ["germline_006", "all"]


def test_segment3d_reads_every_order_of_axes(germline, out, tmp_path):
    image = tifffile.imread(germline / "images" / "germline_005.ome.tif")
    tifffile.imwrite(tmp_path / "plain.tif", image)  # says nothing about its axes
    tifffile.imwrite(tmp_path / "depth_first.tif", np.ascontiguousarray(image.swapaxes(0, 1)))
    tifffile.imwrite(tmp_path / "one.tif", image[0])
    segment3d(germline, germline / "images" / "germline_005.ome.tif", "--out", out)
    expected = read_labels(out / "germline_005_labels.ome.tif")
    edges = ["--pixel-size", "0.5,0.2,0.2", "--out", out]
    for name, axes in (("plain", "CZYX"), ("depth_first", "zcyx"), ("one", "ZYX")):
        segment3d(germline, tmp_path / f"{name}.tif", "--axes", axes, *edges)
        assert (read_labels(out / f"{name}_labels.ome.tif") == expected).all()
    assert "name them with --axes" in error3d(germline, tmp_path / "plain.tif", "--out", out)
    line = error3d(germline, tmp_path / "one.tif", "--axes", "YXZ", "--out", out)
    assert line == "error: axes 'YXZ' are unknown for a stack; allowed are ZYX, CZYX, ZCYX"


def test_segment3d_goes_on_past_bad_stacks(germline, out, tmp_path):
    image = germline / "images" / "germline_005.ome.tif"
    whole = image.read_bytes()
    (tmp_path / "broken.ome.tif").write_bytes(whole[: len(whole) // 2])
    labels = read_labels(germline / "masks" / "germline_005.tif")
    write_labels(tmp_path / "deeper.tif", np.concatenate([labels, labels]))
    shutil.copy(image, tmp_path / "other.ome.tif")
    (tmp_path / "stacks.csv").write_text(
        f"image,mask\n{image},\nbroken.ome.tif,\nother.ome.tif,deeper.tif\ngone.tif,\n"
    )
    result = segment3d(germline, tmp_path / "stacks.csv", "--out", out, code=1)
    assert "in 1 stack:" in result.stdout
    gone, broken, deeper = result.stderr.strip().split("\n")
    table = tmp_path / "stacks.csv"
    assert gone == f"error: {table}, row 5: there is no file {tmp_path / 'gone.tif'}"
    assert broken.startswith(f"error: {table}, row 3: {tmp_path / 'broken.ome.tif'} is cut off")
    assert deeper == (
        f"error: {table}, row 4: the mask {tmp_path / 'deeper.tif'} is (24, 72, 80) and the stack "
        "(12, 72, 80) (Z, Y, X)"
    )


def test_segment3d_refuses(germline, out, tmp_path):
    image = germline / "images" / "germline_005.ome.tif"
    line = error3d(germline, image, "--out", out, "--window", "24,48,48")
    assert line.endswith(
        "the window of 24 x 48 x 48 voxels (z, y, x) is larger than the stack of 12 x 72 x 80; "
        "choose one that fits, such as 12,48,48, or none at all"
    )
    assert "--window: takes three numbers" in error3d(germline, image, "--window", "a,b,c")
    assert "overlap: Input should be less than 1" in error3d(germline, image, "--overlap", 1)
    assert "blending: Input should be" in error3d(germline, image, "--blending", "cubic")
    assert "beta: Input should be less than 1" in error3d(germline, image, "--beta", 2)
    line = error_of("segment3d", image, "--out", out, "--model", "nuclei")
    assert line.startswith("error: the model 'nuclei' is for pictures, not for stacks; choose")
    line = error_of("segment3d", image, "--out", out, "--model", germline / "model")
    assert "choose one with channel" in line and "membranes" in line
    assert not out.exists()


def test_graph_alone_and_learned_edges(germline, out, tmp_path):
    from cellseg_nb.segment.superpixels import distance_watershed

    image = tifffile.imread(germline / "images" / "germline_005.ome.tif")[0]
    walls = np.clip((image / np.percentile(image, 99.5)), 0, 1).astype(np.float32)
    truth = germline / "masks" / "germline_005.tif"
    write_image(tmp_path / "walls.tif", walls, "ZYX", (0.5, 0.2, 0.2))
    shown = run("graph", tmp_path / "walls.tif", "--out", tmp_path / "cells.ome.tif")
    cells = read_labels(tmp_path / "cells.ome.tif")
    assert shown.stdout == f"{cells.max()} cells: {tmp_path / 'cells.ome.tif'}\n"
    many = distance_watershed(walls, sigma_seeds=1.0, min_size=20, pixel_size_um=(0.5, 0.2, 0.2))
    write_labels(tmp_path / "many.zarr", many)
    pieces = ["--superpixels", tmp_path / "many.zarr"]
    learned = tmp_path / "edges.safetensors"
    shown = run("graph-train", tmp_path / "walls.tif", truth, *pieces, "--out", learned)
    assert shown.stdout == f"edges: {learned}\n"
    graph = ["graph", tmp_path / "walls.tif", *pieces, "--out", tmp_path / "learned.tif"]
    run(*graph, "--model", learned)
    assert 1 < read_labels(tmp_path / "learned.tif").max() < many.max()
    run(*graph, "--method", "average", "--beta", 0.6)
    line = error_of("graph", tmp_path / "walls.tif", "--out", tmp_path / "cells.png")
    assert "label volumes are written as .ome.tif, .tif or .zarr" in line
    write_labels(tmp_path / "small.tif", cells[:5])
    line = error_of(
        *("graph", tmp_path / "walls.tif", "--superpixels", tmp_path / "small.tif"),
        *("--out", tmp_path / "x.tif"),
    )
    assert "small.tif is (5, 72, 80) and" in line and "walls.tif is (12, 72, 80)" in line
    large = ["graph", tmp_path / "walls.tif", "--large-mvox", 0.01, "--out"]
    shown = run(*large, tmp_path / "blocks.zarr")
    blocks = read_labels(tmp_path / "blocks.zarr")
    assert blocks.shape == cells.shape and shown.stdout.startswith(f"{blocks.max()} cells: ")
    assert "written as .zarr, not to x.tif" in error_of(*large, tmp_path / "x.tif")
    graph = ["graph", tmp_path / "walls.tif", "--out", tmp_path / "x.tif"]
    assert "method" in error_of(*graph, "--method", "guess")
    line = error_of(*graph, "--method", "watershed", "--beta", 0.6)
    assert line.startswith("error: beta is a setting of the graph, which the method watershed")
    assert "there is no" in error_of(*graph, "--model", tmp_path / "none")


def test_patches(germline, tmp_path, monkeypatch):
    line = ["patches", germline / "table.csv", "--out", tmp_path / "p", "--channel", 0]
    shown = run(*line, "--size", "12,40,40", "--weight-map", "--min-foreground", 0.05)
    table = pd.read_csv(tmp_path / "p" / "patches.csv")
    assert shown.stdout == f"table of patches: {tmp_path / 'p' / 'patches.csv'}\n"
    assert {"image", "mask", "weight"} <= set(table.columns) and len(table) > 2
    assert tifffile.imread(tmp_path / "p" / table["image"][0]).shape == (12, 40, 40)
    assert "larger than the stack" in error_of(*line, "--size", "64,40,40")
    monkeypatch.chdir(tmp_path)
    shown = run("patches", germline / "table.csv", "--size", "12,40,40")
    assert shown.stdout == f"table of patches: {Path('cellseg_out', 'patches', 'patches.csv')}\n"
    assert (tmp_path / "cellseg_out" / "patches" / "patches.csv").exists()
    image = germline / "images" / "germline_005.ome.tif"
    assert "is not a CSV table" in error_of("patches", image, "--out", tmp_path / "p")


def test_training_from_a_checkpoint_names_a_missing_key(tmp_path):
    import torch

    from cellseg_nb.models.unet3d import UNet3D

    checkpoint = tmp_path / "last_checkpoint.pt"
    weights = UNet3D(f_maps=16).state_dict()
    torch.save({"model_state_dict": weights, "epoch": 3}, checkpoint)
    line = ["train", "membranes3d", "--out", tmp_path / "run", f"start_from={checkpoint}"]
    assert error_of(*line, "start_key=weights") == (
        f"error: start_key: {checkpoint} has no 'weights'; there is: model_state_dict, epoch"
    )
    torch.save({"model_state_dict": {**weights, "extra": torch.zeros(1)}}, checkpoint)
    assert "extra is not part of it" in error_of(*line, "start_key=model_state_dict")


# --- evaluate ------------------------------------------------------------------------------------


def test_evaluate_by_group(images, out, tmp_path):
    run("segment", images, "--out", out, "--model", "otsu")
    (tmp_path / "index.csv").write_text("file,stain\ncell1,DAPI\ncell2,Hoechst\n")
    shown = run(
        *(
            "evaluate",
            "--truth",
            tmp_path / "masks",
            "--pred",
            out,
            "--json",
            tmp_path / "scores.json",
        ),
        *("--index", tmp_path / "index.csv", "--by", "stain"),
    )
    rows = [line.split()[0] for line in shown.stdout.split("\n")[:4]]
    assert rows == ["group", "DAPI", "Hoechst", "all"]
    assert "pooled" in shown.stdout
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert [row["group"] for row in scores["groups"]] == ["DAPI", "Hoechst", "all"]
    assert [row["stain"] for row in scores["images"]] == ["DAPI", "Hoechst"]


def test_evaluate_pixels_and_intervals(images, tmp_path):
    truth = tmp_path / "masks"
    line = ["evaluate", "--truth", truth, "--pred", truth, "--json", tmp_path / "scores.json"]
    plain = run(*line).stdout
    assert "pixel" not in plain and "interval" not in plain
    shown = run(*line, "--pixels", "--intervals").stdout
    assert "pixel F1 (Dice)" in shown and "1.00 [1.00, 1.00]" in shown
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["groups"][-1]["pixel_iou"] == 1
    assert {row["high"] for row in written["intervals"] if row["score"] != "count_mae"} == {1}
    (tmp_path / "index.csv").write_text("file,kind\ncell1,NC-I\ncell2,TS\n")
    by = ["--index", tmp_path / "index.csv", "--by", "kind"]
    alone = run(*line, *by, "--intervals").stdout.split("95 % intervals")[1]
    assert alone.count("[") == 4  # four scores of all images; none of a group of one image
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["intervals"][0]["group"] == "NC-I" and written["intervals"][0]["low"] is None


def test_evaluate_stacks_by_size(tmp_path):
    from cellseg_nb.data.simulate import simulate_germline

    _, cells = simulate_germline((8, 48, 48), seed=0, min_visible_px=50)
    write_labels(tmp_path / "truth" / "a.tif", cells)
    write_labels(tmp_path / "pred" / "a.tif", np.where(cells == 1, 2, cells))
    line = ["evaluate", "--truth", tmp_path / "truth", "--pred", tmp_path / "pred"]
    # in a process of its own: scoring needs no network library
    code = "import sys; from cellseg_nb.run.cli import main\ntry: main()\n"
    code += "finally: print(sorted({'torch', 'tensorflow'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, line), "--sizes", "500,2000"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.endswith("[]\n"), done.stderr
    assert "VOI split" in done.stdout and "500 to 2000 voxels" in done.stdout
    assert "--sizes takes voxels with commas" in error_of(*line, "--sizes", "5;9")
    assert "must be positive and rise" in error_of(*line, "--sizes", "9,5")
    flat = ["evaluate", "--truth", tmp_path / "flat.tif", "--pred", tmp_path / "flat.tif"]
    write_labels(tmp_path / "flat.tif", cells[0])
    assert "is for stacks, and no image is one" in run(*flat, "--sizes", "5").stderr


def test_evaluate_refuses(images, out, tmp_path):
    truth = tmp_path / "masks"
    labels = read_labels(truth / "cell1_masks.tif")
    # a float label image
    tifffile.imwrite(tmp_path / "float.tif", labels.astype(np.float32))
    line = error_of("evaluate", "--truth", truth / "cell1_masks.tif", "--pred", tmp_path / "float.tif")
    assert line.startswith(f"error: {tmp_path / 'float.tif'} ") and "float32" in line
    # another size: both files are named
    write_labels(tmp_path / "small.tif", labels[:50])
    line = error_of("evaluate", "--truth", truth / "cell1_masks.tif", "--pred", tmp_path / "small.tif")
    assert line == (
        f"error: {truth / 'cell1_masks.tif'} has shape (96, 112) and {tmp_path / 'small.tif'} has "
        "(50, 112); truth and prediction must have the same size"
    )
    # a missing prediction
    write_labels(tmp_path / "pred" / "cell1_labels.tif", labels)
    line = error_of("evaluate", "--truth", truth, "--pred", tmp_path / "pred")
    assert (
        line
        == f"error: {tmp_path / 'pred'} has no prediction for 1 image: cell2; --allow-missing counts such images as nothing found"
    )
    shown = run("evaluate", "--truth", truth, "--pred", tmp_path / "pred", "--allow-missing")
    assert "warning: 1 without prediction, counted as nothing found" in shown.stderr
    # missing folder, missing column
    assert "there is no file or folder" in error_of("evaluate", "--truth", truth, "--pred", tmp_path / "no")
    (tmp_path / "index.csv").write_text("file,kind\ncell1,a\n")
    index = ["evaluate", "--truth", truth, "--pred", truth, "--index", tmp_path / "index.csv"]
    assert "has no column 'colour'; its columns are: file, kind" in error_of(*index, "--by", "colour")
    assert "has no row for 1 image: cell2" in error_of(*index, "--by", "kind")


def test_evaluate_masks_and_unlabelled_pixels(images, tmp_path):
    labels = read_labels(images.parent / "masks" / "cell1_masks.tif").astype(np.int32)
    partly = np.where(np.arange(labels.shape[1]) < 60, labels, -1)
    for name, pixels in (("mask", (labels > 0).astype(np.uint8)), ("partly", partly), ("pred", labels)):
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels)
    files = {name: tmp_path / f"{name}.tif" for name in ("mask", "partly", "pred")}
    for pair in (("mask", "pred"), ("pred", "mask")):
        line = error_of("evaluate", "--truth", files[pair[0]], "--pred", files[pair[1]])
        assert line.startswith(f"error: {files['mask']} is a mask of two values") and "--label-parts" in line
    shown = run("evaluate", "--truth", files["mask"], "--pred", files["mask"], "--label-parts").stdout
    assert shown.splitlines()[1].split()[4] == "1.000"
    whole = run("evaluate", "--truth", files["mask"], "--pred", files["mask"], "--no-label-parts").stdout
    assert whole.splitlines()[1].split()[2:4] == ["1", "1"]
    line = ["evaluate", "--truth", files["partly"], "--pred", files["pred"]]
    assert "is scored with --ignore -1" in error_of(*line)
    row = run(*line, "--ignore", "-1", "--json", tmp_path / "s.json").stdout.splitlines()[1].split()
    n_known = str(len(np.unique(partly)) - 2)
    assert row[2:5] == [n_known, n_known, "1.000"]
    assert json.loads((tmp_path / "s.json").read_text())["scored_part_of_pixels"]["partly"] < 1
    same = ["evaluate", "--truth", files["pred"], "--pred", files["pred"], "--ignore", "-1"]
    assert "1 of 1 true images have no pixel to ignore" in run(*same).stderr
    tifffile.imwrite(tmp_path / "wrapped.tif", partly.astype(np.uint16))
    line = ["evaluate", "--truth", tmp_path / "wrapped.tif", "--pred", files["pred"], "--ignore"]
    assert "is uint16, which holds no -1" in (said := error_of(*line, "-1")) and "--ignore 65535" in said
    assert run(*line, "65535").stdout.splitlines()[1].split()[2:5] == [n_known, n_known, "1.000"]


def test_training_refuses_masks(tmp_path):
    from cellseg_nb.data.simulate import write_simulated

    write_simulated(tmp_path / "data", 2, shape=(96, 96), n_nuclei=8)
    for path in (tmp_path / "data" / "masks").iterdir():
        tifffile.imwrite(path, (read_labels(path) > 0).astype(np.uint8))
    (tmp_path / "c.yml").write_text(f"name: x\ndata: {{dataset: {tmp_path / 'data'}}}\n")
    line = error_of("train", tmp_path / "c.yml", "--out", tmp_path / "run")
    assert "is a mask of two values, not a label image" in line and "--label-parts" in line
    line = error_of("tune", "nuclei", "--dataset", tmp_path / "data")
    assert "is a mask of two values" in line
    from cellseg_nb.train.crops import chosen_samples
    from cellseg_nb.train.settings import read_config

    config = read_config(tmp_path / "c.yml", ["data.label_parts=true"])
    assert [sample.labels().max() for sample in chosen_samples(config.data)] == [4, 3]


def test_evaluate_goes_on_after_a_bad_file(images, tmp_path):
    labels = read_labels(tmp_path / "masks" / "cell1_masks.tif")
    for name in ("cell1", "cell2"):
        write_labels(tmp_path / "pred" / f"{name}_labels.tif", labels)
    write_image(tmp_path / "pred" / "truth_against_prediction.png", labels, "YX")
    (tmp_path / "pred" / "cell2_labels.tif").write_text("no image")
    line = ["evaluate", "--truth", tmp_path / "masks", "--pred", tmp_path / "pred"]
    shown = run(*line, code=1)
    assert shown.stdout.split("\n")[1].split()[:2] == ["all", "1"]
    assert shown.stderr.startswith("error: cell2 is left out: ")
    (tmp_path / "pred" / "cell1_labels.tif").write_text("no image")
    assert "cell1_labels.tif" in error_of(*line) and "cell2_labels.tif" in error_of(*line)


# --- train, data, model --------------------------------------------------------------------------


def test_train_passes_configuration_and_names_wrong_keys(tmp_path, monkeypatch):
    from cellseg_nb.train import learner

    calls = []
    monkeypatch.setattr(learner, "train", lambda *arguments: calls.append(arguments) or "the folder")
    config = tmp_path / "mine.yml"
    config.write_text("name: mine\ntraining:\n  epochs: 3\n")
    assert (
        run("train", config, "training.epochs=5", "--out", tmp_path / "run", "--resume").stdout == "model: the folder\n"
    )
    resolved, folder, resume, force = calls[0]
    assert resolved.training.epochs == 5 and folder == tmp_path / "run" and resume and not force
    run("train", config, "--force")
    assert calls[1][1] == Path("runs/mine") and calls[1][3]
    config.write_text("name: mine\ntraining:\n  epochen: 3\n")
    line = error_of("train", config)
    assert line.startswith(f"error: {config}: training.epochen: unknown key; allowed here: epochs")
    assert "no configuration" in error_of("train", tmp_path / "none.yml")


def test_train_refuses_suggests_and_cross_validates(tmp_path, monkeypatch):
    from cellseg_nb.train import experiments, finish, learner

    def refuse(*_):
        raise finish.WorseThanParent("the parent is better", tmp_path / "model_refused")

    config = tmp_path / "mine.yml"
    config.write_text("name: mine\n")
    monkeypatch.setattr(learner, "train", refuse)
    assert error_of("train", config, code=1) == "error: the parent is better"
    found = learner.LearningRate(0.00123, np.ones(3), np.ones(3))
    monkeypatch.setattr(learner, "find_learning_rate", lambda *_: found)
    shown = run("train", config, "--find-lr", "--out", tmp_path / "run").stdout
    assert shown.startswith("suggestion: training.learning_rate=0.0012\n")
    table = pd.DataFrame({"fold": ["1", "pooled"], "AP@.5": [0.5, 0.25]})
    monkeypatch.setattr(experiments, "cross_validate", lambda config, folds, out: table)
    shown = run("train", config, "--folds", 2, "--out", tmp_path / "run").stdout
    assert "pooled   0.25" in shown and "cross_validation.csv" in shown
    run("train", config, "--folds", 1, code=2)
    assert "--find-lr trains no model" in error_of("train", config, "--find-lr", "--folds", 3)
    assert "--folds goes on by itself" in error_of("train", config, "--folds", 3, "--resume")


def test_data(tmp_path):
    shown = run("data", "list").stdout
    assert "dsb2018" in shown and "CC0" in shown
    assert "Nature Methods" in shown and "https://" in shown  # what to cite, and the address
    assert (Path(run("data", "get", "sample").stdout.strip()) / "img2d.tif").exists()
    assert "there is no data set 'x'" in error_of("data", "get", "x")
    simulate = [
        "data",
        "simulate",
        "--images",
        2,
        "--size",
        64,
        "--nuclei",
        4,
        "--seed",
        7,
        "--out",
    ]
    run(*simulate, tmp_path / "a")
    run(*simulate, tmp_path / "b")
    for kind in ("images", "masks"):
        names = [path.name for path in sorted((tmp_path / "a" / kind).iterdir())]
        assert names == ["nuclei_000.tif", "nuclei_001.tif"]
        for name in names:
            first, second = (read_labels(tmp_path / folder / kind / name) for folder in "ab")
            assert (first == second).all()


def test_model_list_and_unknown_model():
    assert "otsu" in run("model", "list").stdout
    assert error_of("model", "show", "none").startswith("error: no model 'none'")


def test_debug_shows_the_traceback_before_and_after_the_verb():
    plain = subprocess.run([*START, "data", "get", "x"], capture_output=True, text=True)
    assert plain.returncode == 2 and plain.stderr.startswith("error: there is no data set 'x'")
    for arguments in (["--debug", "data", "get", "x"], ["data", "get", "x", "--debug"]):
        debug = subprocess.run([*START, *arguments], capture_output=True, text=True)
        assert debug.returncode != 0 and "Traceback" in debug.stderr and "ValueError" in debug.stderr


def test_tune_chooses_on_labelled_images_and_writes_a_copy(images, out):
    for mask in (images.parent / "masks").iterdir():
        mask.rename(mask.with_name(mask.name.replace("_masks", "")))
    chosen = run("tune", "--dataset", images.parent, "--out", out).stdout
    assert "cross-checked" in chosen and "seed_height:" in chosen and f"model: {out}" in chosen
    copy = json.loads((out / "model.json").read_text(encoding="utf-8"))
    assert set(copy["scores"]) == {"cross-checked"}
    assert "holds a model already" in error_of("tune", "--dataset", images.parent, "--out", out)
    assert "--dataset too" in error_of("tune", "--split", "train")
    assert "test split" in error_of("tune", "--dataset", "dsb2018", "--split", "test")
