"""Counting: the same count for any tiles, and the command as a person uses it."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import error_of, run

from cellseg_nb.data.io import read_image, write_image
from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.models.bundle import Bundle, CountSpecification, load_bundle, save_bundle
from cellseg_nb.models.zoo import build_network
from cellseg_nb.segment.count import calibrate_kinds, count_image, count_statistics, predict_density
from cellseg_nb.train.count_pictures import SIMULATED

HALO_PX = 8  # how far the network of the first tests looks
ABOUT = {"target": {"activation": "softplus", "factor": 300}}
CALIBRATION = {"level": 0.9, "scale": "constant", "offset": 0.0}
CALIBRATION["residuals"] = {"1": list(range(1, 11)), "2": list(range(11, 21))}


def near_sighted_bundle() -> Bundle:
    """Two convolutions with random numbers, which see 8 px far and keep no state."""
    torch.manual_seed(0)
    layers = (
        torch.nn.Conv2d(1, 4, 9, padding=4),
        torch.nn.ReLU(),
        torch.nn.Conv2d(4, 1, 9, padding=4),
    )
    about = CountSpecification(name="near-sighted", **ABOUT)
    return Bundle(torch.nn.Sequential(*layers).eval(), about, Path())


NEAR_SIGHTED = near_sighted_bundle()
PICTURE = simulate_nuclei((231, 317), n_nuclei=60, seed=4)[0]


WHOLE = predict_density(PICTURE, NEAR_SIGHTED, 512, 128, "cpu")  # one tile


@settings(max_examples=20, deadline=None)
@given(
    tile_px=st.integers(3, 9).map(lambda number: 32 * number),
    overlap_px=st.integers(3 * HALO_PX, 63),
)
def test_count_does_not_depend_on_the_tiles(tile_px, overlap_px):
    """Where the halo, 7/16 of the overlap, covers what the network sees, nothing changes."""
    tiled = predict_density(PICTURE, NEAR_SIGHTED, tile_px, overlap_px, "cpu")
    assert np.abs(tiled - WHOLE).max() < 1e-5 * WHOLE.max()
    assert abs(tiled.sum(dtype=float) / WHOLE.sum(dtype=float) - 1) < 1e-5


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model with random numbers and a calibration."""
    folder = tmp_path_factory.mktemp("models") / "random"
    network = {"encoder_depth": 3, "decoder_channels": (16, 8, 8), "attention": None}
    about = CountSpecification(name="random", network=network, calibration=CALIBRATION, **ABOUT)
    torch.manual_seed(3)
    return save_bundle(folder, build_network(**about.network.model_dump(), out_channels=1), about)


@pytest.fixture
def images(tmp_path):
    for number in (1, 2):
        image, _ = simulate_nuclei((96, 112), n_nuclei=6, seed=number)
        write_image(tmp_path / "images" / f"cell{number}.tif", image, "YX", pixel_size_um=0.5)
    return tmp_path / "images"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def table(out: Path) -> pd.DataFrame:
    return pd.read_csv(out / "counts.csv")


def test_count_writes_tables_plots_and_heat_maps(images, out, model):
    (out / "counts.json").parent.mkdir()
    (out / "counts.json").write_text('{"earlier": 7}')
    done = run("count", images, "--out", out, "--model", model, "--tile", 64)
    assert "90% interval" in done.stdout and f"results: {out}" in done.stdout
    counts = table(out)
    names = ["image", "count", "low", "high", "n_points", "unlike", "seconds"]
    assert list(counts)[:7] == names and list(counts["image"]) == ["cell1", "cell2"]
    assert ((counts["low"] <= counts["count"]) & (counts["count"] <= counts["high"])).all()
    known = json.loads((out / "counts.json").read_text())
    assert list(known) == ["earlier", "cell1", "cell2"] and known["earlier"] == 7
    assert known["cell1"]["count"] == counts["count"][0] and known["cell1"]["unlike"] is None
    points = pd.read_csv(out / "points.csv")
    assert list(points) == ["image", "annotator", "y", "x", "class"]
    assert len(points) == counts["n_points"].sum() and set(points["annotator"]) <= {"random"}
    heatmap = read_image(out / "heatmaps" / "cell1_heatmap.ome.tif")
    assert heatmap.pixels.dtype == np.float32 and heatmap.pixel_size_um == (0.5, 0.5)
    assert abs(heatmap.pixels.sum() - counts["count"][0]) < 0.01
    assert sorted(one.name for one in (out / "plots").iterdir()) == [
        "cell1_count.png",
        "cell2_count.png",
    ]
    facts = json.loads((out / "run.json").read_text())
    assert facts["command"] == "count" and facts["settings"]["tile_px"] == 64


def test_count_goes_on(images, out, model):
    run("count", images / "cell1.tif", "--out", out, "--model", model)
    before = (out / "plots" / "cell1_count.png").stat().st_mtime_ns
    done = run("count", images, "--out", out, "--model", model)
    assert "results, 1 finished before" in done.stdout
    assert (out / "plots" / "cell1_count.png").stat().st_mtime_ns == before
    first = table(out)
    run("count", images / "cell2.tif", "--out", out, "--model", model, "--level", 0.5)
    second = table(out)
    assert list(second["image"]) == ["cell1", "cell2"] and list(second["level"]) == [0.9, 0.5]
    assert list(second["count"]) == list(first["count"])


def test_count_goes_past_bad_files(images, out, model):
    (images / "damaged.tif").write_bytes(b"II*\0 nothing")
    stack = np.stack([read_image(images / "cell1.tif").pixels] * 2)
    write_image(images / "two.ome.tif", stack, "CYX", channels=["DAPI", "GFP"])
    done = run("count", images, "--out", out, "--model", model, code=1)
    lines = done.stderr.strip().splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "error"]
    assert "damaged.tif" in lines[0]
    assert "two.ome.tif" in lines[1] and "DAPI" in lines[1] and "GFP" in lines[1]
    assert list(table(out)["image"]) == ["cell1", "cell2"]
    run("count", images / "two.ome.tif", "--out", out, "--model", model, "--channel", "GFP")
    counts = table(out).set_index("image")["count"]
    assert counts["two"] == counts["cell1"]


def test_count_says_what_is_wrong(images, out, model):
    arguments = ["count", images, "--out", out, "--model"]
    assert "no model 'colonies'" in error_of(*arguments, "colonies")
    assert "predicts objects, not cells per pixel" in error_of(*arguments, "nuclei")
    assert "level: Input should be less than 1 (it is 95" in error_of(*arguments, model, "--level", 95)
    line = error_of("count", images / "cell1.tif", *arguments[2:], model, "--level", 0.99)
    assert "an interval of 99% needs 99 counted pictures" in line and "there are 20" in line
    assert "must be smaller than their edge" in error_of(*arguments, model, "--overlap", 1024)
    assert "there is no file" in error_of("count", images / "cell9.tif", *arguments[2:], model)
    assert not (out / "counts.csv").exists()
    out.mkdir(exist_ok=True)
    (out / "counts.csv").write_text("image,count\n")
    assert "was not made by this command" in error_of(*arguments, model)


def test_counts_and_outlines_do_not_overwrite_each_other(images, tmp_path, model):
    counted, outlined = tmp_path / "counted", tmp_path / "outlined"
    run("count", images, "--out", counted, "--model", model)
    assert "not made by this command" in error_of("segment", images, "--out", counted, "--model", "otsu")
    run("segment", images, "--out", outlined, "--model", "otsu")
    assert "not made by this command" in error_of("count", images, "--out", outlined, "--model", model)


def test_the_model_of_the_package_counts_in_eight_orientations():
    image, bundle = SIMULATED["simulated-phase-contrast"](77_000).image, load_bundle("count-cells")
    usual, eight, one = (count_image(image, bundle, flips=flips) for flips in (None, True, False))
    assert usual.low < usual.count < usual.high and usual[:3] == eight[:3]
    assert np.isnan(one.low) and one.count != usual.count


# --- kinds of pictures ----------------------------------------------------------------------------


@pytest.fixture
def two_kinds(tmp_path, model):
    """A model that knows dark and crowded pictures of nuclei; only the first were counted often enough for an interval."""
    bundle, described = load_bundle(model), {}
    for kind, n_nuclei in (("few", 6), ("many", 45)):
        pictures = [simulate_nuclei((96, 112), n_nuclei=n_nuclei, seed=seed)[0] for seed in range(30)]
        densities = [predict_density(one, bundle, device="cpu") for one in pictures]
        described[kind] = [count_statistics(one, bundle, two) for one, two in zip(pictures, densities)]
    rows = pd.DataFrame({"kind": ["few"] * 12 + ["many"] * 8, "fold": "aside", "truth": 20.0})
    calibration = calibrate_kinds(rows.assign(predicted=[21.0] * 12 + [29.0] * 8), described)
    about = bundle.specification.model_copy(update={"calibration": calibration})
    return save_bundle(tmp_path / "kinds", bundle.network, about)


def test_every_kind_of_picture_has_its_own_interval_or_none_and_says_why(tmp_path, out, two_kinds):
    pictures = {"few": simulate_nuclei((96, 112), n_nuclei=6, seed=77)[0]}
    pictures["many"] = simulate_nuclei((96, 112), n_nuclei=45, seed=77)[0]
    pictures["noise"] = np.random.default_rng(0).poisson(20, (96, 112)).astype(np.uint16)
    for name, picture in pictures.items():
        write_image(tmp_path / "images" / f"{name}.tif", picture, "YX")
    done = run("count", tmp_path / "images", "--out", out, "--model", two_kinds)
    counts = pd.read_csv(out / "counts.csv", keep_default_na=False).set_index("image")
    assert counts["kind"].to_dict() == {"few": "few", "many": "many", "noise": ""}
    assert [low != "" for low in counts["low"]] == [True, False, False]
    assert float(counts.loc["few", "high"]) - float(counts.loc["few", "count"]) == pytest.approx(1, abs=0.01)
    reasons = counts["no_interval_because"].to_dict()
    assert reasons["few"] == "" and "resembles no kind of picture" in reasons["noise"]
    assert "of the kind many: an interval of 90% needs 9 counted pictures" in reasons["many"]
    known = json.loads((out / "counts.json").read_text())
    assert {name: one["no_interval_because"] for name, one in known.items()} == reasons
    shown = {
        line.split()[0]: line for line in done.stdout.splitlines() if line.split()[:1] in ([name] for name in pictures)
    }
    assert "no interval: too few of its kind" in shown["many"] and "unlike the training" in shown["noise"]
    assert "1 image without an interval: of the kind many" in done.stderr + done.stdout


def test_a_model_of_before_gives_the_interval_of_all_pictures(images, model):
    found = count_image(read_image(images / "cell1.tif").pixels, load_bundle(model))
    assert (found.kind, found.why, np.isnan(found.low)) == ("", "", False)
