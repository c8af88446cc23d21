"""A StarDist model in the places where every model goes: images, large images, tables, exports, errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from cellseg_nb.data.io import read_labels, write_image, write_labels
from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.measure.matching import match
from cellseg_nb.models.bundle import (
    StarNetworkSettings,
    StarSpecification,
    load_bundle,
    save_bundle,
)
from cellseg_nb.models.stars import build_stars, fill_stars, star_arrays
from cellseg_nb.run.analyse import SegmentSettings, analyse, segment_image
from cellseg_nb.run.cli import app
from cellseg_nb.segment.stars import predict_stars


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return discs(tmp_path_factory.mktemp("model"))


def discs(folder, **own):
    """A network of known random numbers, whose proposals are discs."""
    settings = StarNetworkSettings(n_rays=16, grid=(2, 2), n_depth=1, n_filter_base=4, **own)
    network, rng = build_stars(settings), np.random.default_rng(0)
    arrays = {name: rng.normal(0, 0.3, one.shape) for name, one in star_arrays(network).items()}
    for layer, bias in (("dist", 6), ("prob", 0)):
        arrays[f"{layer}/kernel"] *= 0.1
        arrays[f"{layer}/bias"] = np.full(arrays[f"{layer}/bias"].shape, bias)
    about = StarSpecification(
        name="tiny",
        network=settings,
        diameter_px=12,
        postprocessing={"prob_thresh": 0.5, "nms_thresh": 0.2},
    )
    return save_bundle(folder, fill_stars(network, arrays), about)


def run(*arguments, code=0):
    """Run a verb; what it says."""
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == code and "Traceback" not in result.output, result.output
    return result.output


def test_images_tables_and_exports(model, tmp_path):
    image, _ = simulate_nuclei((150, 420), n_nuclei=40, seed=5)
    write_image(tmp_path / "a.tif", image, "YX")
    bundle = load_bundle(model)
    found = segment_image(image, bundle)
    np.testing.assert_array_equal(found.labels, predict_stars(image, bundle).labels)
    settings = SegmentSettings(exports=("roi", "geojson"))
    whole = analyse(tmp_path / "a.tif", tmp_path / "whole", model, settings)
    assert not whole.failures
    assert whole.counts["count"].item() == found.labels.max() == len(whole.objects)
    np.testing.assert_allclose(whole.objects["confidence"], found.confidence, atol=1e-4)
    assert {path.suffix for path in whole.out.glob("a*")} >= {".tif", ".png", ".zip", ".geojson"}
    settings = SegmentSettings(large_mpx=0.01, tile_px=256, overlap_px=48)
    large = analyse(tmp_path / "a.tif", tmp_path / "large", model, settings)
    assert not large.failures
    labels = read_labels(large.out / "a_labels.ome.tif")
    assert match(found.labels, labels).f1[0] > 0.95
    assert {"confidence", "area_px"} < set(pd.read_csv(large.out / "objects.csv"))
    strict = SegmentSettings(threshold=float(np.median(found.confidence)), min_area_px=20)
    assert 0 < segment_image(image, bundle, strict).labels.max() < found.labels.max()
    assert segment_image(image, bundle, SegmentSettings(diameter_px=24)).labels.shape == image.shape


def test_exports_hold_the_polygons(model, tmp_path):
    image, _ = simulate_nuclei((100, 120), n_nuclei=10, seed=5)
    write_image(tmp_path / "a.tif", image, "YX")
    settings = SegmentSettings(min_area_px=20)
    analyse(tmp_path / "a.tif", tmp_path / "out", model, settings)
    later = settings.model_copy(update={"exports": ("geojson",)})  # computed again for them
    summary = analyse(tmp_path / "a.tif", tmp_path / "out", model, later)
    assert not summary.failures and not summary.resumed
    found = segment_image(image, load_bundle(model), settings)
    text = json.loads((summary.out / "a.geojson").read_text())["features"]
    assert len(text) == len(found.polygons) == found.labels.max()
    ring = np.array(text[0]["geometry"]["coordinates"][0])
    np.testing.assert_allclose(ring[:, ::-1], found.polygons[1][0][0], atol=0.01)
    assert len(ring) == 17 and "confidence" in text[0]["properties"]["measurements"]
    assert analyse(tmp_path / "a.tif", tmp_path / "out", model, later).resumed == ["a"]


def test_a_model_that_sees_colours(tmp_path):
    model = discs(tmp_path / "model", in_channels=3)
    image = np.random.default_rng(0).integers(0, 255, (64, 80, 3), np.uint8)
    write_image(tmp_path / "in" / "colour.png", image, "YXC")
    write_image(tmp_path / "in" / "equal.png", image[..., :1].repeat(3, axis=2), "YXC")
    run("segment", tmp_path / "in", "--out", tmp_path / "a", "--model", model)
    labels = read_labels(tmp_path / "a" / "colour_labels.tif")
    np.testing.assert_array_equal(labels, predict_stars(image, model).labels)
    write_image(tmp_path / "gray.tif", image[..., 0], "YX")
    line = run("segment", tmp_path / "gray.tif", "--out", tmp_path / "b", "--model", model, code=2)
    assert "takes pictures (Y, X, 3); this one is (64, 80)" in line
    large = ("--large-mpx", "0.001", "--out", tmp_path / "c", "--model", model)
    assert "sees colours" in run("segment", tmp_path / "in" / "colour.png", *large, code=2)


def test_a_model_for_stacks_says_so(tmp_path):
    settings = StarNetworkSettings(architecture="StarDist3D", n_rays=8, n_depth=1, n_filter_base=4)
    about = StarSpecification(name="solid", network=settings)
    model = save_bundle(tmp_path / "model", build_stars(settings), about)
    write_image(tmp_path / "stack.tif", np.zeros((4, 16, 16), np.uint8), "ZYX")
    line = run("segment", tmp_path / "stack.tif", "--out", tmp_path / "a", "--model", model, code=2)
    assert "'solid' is a StarDist model for stacks" in line and "predict_stars" in line
    with pytest.raises(ValueError, match="is a StarDist model for stacks"):
        segment_image(np.zeros((16, 16)), load_bundle(model))


def test_folders_of_stardist_go_out_and_come_in(model, tmp_path):
    theirs, back = tmp_path / "theirs", tmp_path / "back"
    assert str(theirs) in run("model", "export", model, "--out", theirs)
    assert f"model: {back}" in run("model", "import", theirs, "--out", back)
    image = np.random.default_rng(0).random((64, 64))
    ours, again = (predict_stars(image, one).labels for one in (model, back))
    np.testing.assert_array_equal(again, ours)
    assert "is there already" in run("model", "import", theirs, "--out", back, code=2)
    other = ("model", "export", "nuclei", "--out", tmp_path / "x")
    assert "is no StarDist model" in run(*other, code=2)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("size, kept", [(1000, True), (10_000_001, False)])
def test_scoreboard_train_begins_goes_on_and_keeps_the_model(tmp_path, size, kept):
    for name in ("Makefile", "settings.ini", "setup.py"):
        shutil.copy(Path(__file__).parents[1] / name, tmp_path)
    command, bundle = tmp_path / ".venv/bin/cellseg", tmp_path / "cellseg_nb/bundles/stars"
    model = tmp_path / "runs/stars/model"
    for folder in (command.parent, bundle, model.parent):
        folder.mkdir(parents=True)  # runs/stars is there, and empty
    (tmp_path / ".venv/.installed").touch()
    command.write_text(
        "#!/bin/sh\necho $@ >> calls.txt\nmkdir -p runs/stars/model\n"
        "cd runs/stars && touch config.yml log.csv model/model.json\n"
        f"head -c {size} /dev/zero > model/weights.safetensors\n"
    )
    command.chmod(0o755)
    for _ in range(2):
        done = subprocess.run(["make", "scoreboard-train"], cwd=tmp_path, capture_output=True)
        assert (done.returncode == 0) == kept, done.stderr
    first, second = (tmp_path / "calls.txt").read_text().splitlines()
    assert "--resume" not in first and second == f"{first} --resume"
    names = {"log.csv", "model.json", "weights.safetensors"} if kept else set()
    assert {path.name for path in bundle.iterdir()} == names


def test_what_a_star_model_cannot_do(model):
    image = np.random.default_rng(0).random((64, 64))
    bundle = load_bundle(model)
    with pytest.raises(ValueError, match="leave out flips"):
        segment_image(image, bundle, SegmentSettings(flips=True))
    with pytest.raises(ValueError, match="averaging models wants another model"):
        segment_image(image, [bundle, bundle])
    with pytest.raises(ValueError, match="is no StarDist model and has no nms_threshold"):
        segment_image(image, "nuclei", SegmentSettings(nms_threshold=0.3))
    with pytest.raises(ValueError, match="paints no maps"):
        from cellseg_nb.train.tune import labelled_samples

        labelled_samples(bundle)
    with pytest.raises(ValueError, match="is for pictures, not for stacks"):
        from cellseg_nb.run.stacks import segment_stack

        segment_stack(np.zeros((4, 8, 8)), bundle)


def test_colours_are_learned_and_segmented_with_event_files(tmp_path, monkeypatch):
    """Few steps on pictures in red, green and blue: a model that reads them, and what TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for n in range(3):
        image, labels = simulate_nuclei((80, 96), n_nuclei=8, seed=n)
        colours = np.stack([image / image.max() * share for share in (255, 120, 200)], -1)
        write_image(tmp_path / "in/images" / f"{n}.tif", colours.astype(np.uint8), "YXC")
        write_labels(tmp_path / "in/masks" / f"{n}.tif", labels)
    (tmp_path / "stars.yml").write_text(
        "{name: stained, task: stars, network: {architecture: StarDist2D, in_channels: 3, n_rays: 8, grid: [2, 2], "
        f"n_depth: 1, n_filter_base: 4}}, data: {{dataset: {tmp_path / 'in'}, validation_fraction: 0.3}}, "
        "training: {epochs: 2, steps_per_epoch: 4, batch_size: 2, patch_size: 48, tensorboard: true}, "
        "postprocessing: {prob_thresh: 0.5, nms_thresh: 0.4}}"
    )
    line = ("train", tmp_path / "stars.yml", "--out", tmp_path / "run")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "tensorboard", None)
        assert "tensorboard is needed here and not installed: pip install" in run(*line, code=2)
    assert not (tmp_path / "run").exists()
    run(*line)
    model = load_bundle(tmp_path / "run/model")
    assert model.specification.network.in_channels == 3
    shown = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    assert {"loss/loss", "loss/val_loss", "training/learning_rate"} <= set(shown.Tags()["scalars"])
    assert [one.step for one in shown.Scalars("loss/loss")] == [0, 1]
    assert [(one.width, one.height) for one in shown.Images("crop/0")] == [(48, 48)]
    run("segment", tmp_path / "in/images/0.tif", "--model", tmp_path / "run/model", "--out", tmp_path / "out")
    assert read_labels(tmp_path / "out/0_labels.tif").shape == (80, 96)
    with pytest.raises(ValueError, match="'stained' takes pictures"):
        segment_image(image, model)
