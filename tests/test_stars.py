"""A StarDist model in the places where every model goes: images, large images, tables, exports, errors."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellseg_nb.data.io import read_labels, write_image
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
from cellseg_nb.segment.stars import predict_stars


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network of known random numbers, whose proposals are discs."""
    settings = StarNetworkSettings(n_rays=16, grid=(2, 2), n_depth=1, n_filter_base=4)
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
    return save_bundle(tmp_path_factory.mktemp("model"), fill_stars(network, arrays), about)


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
