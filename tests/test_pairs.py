"""Masks are learned from pairs by the command `cellseg`: folds by slide, resuming, a model from a model."""

import json

import numpy as np
import pandas as pd
import pytest
from test_cli import error_of, run

from cellseg_nb.data.pairs import simulate_pair, write_simulated_pairs
from cellseg_nb.models.bundle import load_bundle, read_specification
from cellseg_nb.segment.predict import predict

SMALL = {
    "encoder": "tu-tf_efficientnet_lite0",
    "encoder_depth": 3,
    "decoder_channels": [16, 8, 8],
}
QUICK = {"epochs": 2, "steps_per_epoch": 2, "crop_px": 64, "batch_size": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    return write_simulated_pairs(tmp_path_factory.mktemp("tiles"), n_groups=3, n_tiles=4, shape=(64, 72))


@pytest.fixture
def pairs(tiles, tmp_path):
    """A YAML file, with changes to its parts."""

    def write(**changes):
        config = {"name": "tufts", "task": "pairs", "data": {"dataset": str(tiles), "um_per_px": 8}}
        config |= {"network": SMALL, "training": QUICK}
        config = {key: {**one, **changes.get(key, {})} if isinstance(one, dict) else one for key, one in config.items()}
        path = tmp_path / "tufts.yml"
        path.write_text(json.dumps(config | {key: changes[key] for key in changes.keys() - config.keys()}))
        return path

    return write


def test_training_is_resumed_to_the_same_model(pairs, tmp_path):
    once, twice = tmp_path / "once", tmp_path / "twice"
    run("train", pairs(), "--out", once)
    log = pd.read_csv(once / "log.csv")
    assert list(log)[:4] == ["epoch", "train_loss", "valid_loss", "valid_dice"] and len(log) == 2
    assert (once / "validation.csv").is_file()

    from cellseg_nb.train.callbacks import Keep
    from cellseg_nb.train.learner import train
    from cellseg_nb.train.settings import read_config

    config, after_epoch = read_config(pairs()), Keep.after_epoch

    def stop(self):
        after_epoch(self)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keep, "after_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, twice)
    run("train", pairs(), "--out", twice, "--resume")
    columns = ["train_loss", "valid_loss", "valid_dice"]
    again = pd.read_csv(twice / "log.csv")
    np.testing.assert_allclose(again[columns], log[columns], atol=2e-3)


def test_folds_leave_whole_slides_out(pairs, tmp_path):
    config = pairs(data={"validation_fraction": 0}, training={"epochs": 1, "encoder_weights": "none"})
    run("train", config, "--folds", 3, "--out", tmp_path / "run")
    folds = [pd.read_csv(tmp_path / "run" / f"fold_{fold}" / "held_out.csv") for fold in (1, 2, 3)]
    assert sorted(one["group"].tolist() for one in folds) == [["slide1"], ["slide2"], ["slide3"]]
    assert [one["pictures"].tolist() for one in folds] == [[4]] * 3
    table = pd.read_csv(tmp_path / "run" / "cross_validation.csv").set_index("fold")
    assert table.loc["pooled", "groups"] == 3 and table["Dice"].between(0, 1).loc[["1", "2", "3"]].all()
    for fold, rows in enumerate(folds, start=1):
        facts = json.loads((tmp_path / "run" / f"fold_{fold}" / "run.json").read_text())
        assert not any(name.startswith(rows["group"][0]) for name in facts["inputs"])
        assert len(facts["inputs"]) == 8


def test_a_model_paints_colours_and_starts_another(pairs, tmp_path):
    first = tmp_path / "first"
    run("train", pairs(), "--out", first)
    bundle = load_bundle(first / "model")
    about = bundle.specification
    assert about.um_per_px == 8 and about.encoder_weights.startswith("imagenet")
    image, _ = simulate_pair((70, 90), seed=5)
    painted = predict(image, bundle, device="cpu", precision="float32")
    assert painted.shape == (1, 70, 90) and 0 <= painted.min() and painted.max() <= 1
    config = pairs(start_from=str(first / "model"), training={"epochs": 1, "learning_rate": 1e-6})
    run("train", config, "--out", tmp_path / "second", "--force")
    child = read_specification(tmp_path / "second" / "model")
    assert child.encoder_weights == f"those of {first / 'model'}" and child.network == about.network
    assert "does not paint masks" in error_of("train", pairs(start_from="nuclei"), "--out", tmp_path / "third")
    picture = tmp_path / "a.png"
    from cellseg_nb.data.io import write_image

    write_image(picture, image, "YXC")
    refused = error_of("segment", picture, "--model", first / "model", "--out", tmp_path / "found")
    assert "paints one mask" in refused and "cellseg slide" in refused


def test_random_start_is_said_and_never_frozen(pairs, tmp_path, monkeypatch):
    from cellseg_nb.models import encoders

    monkeypatch.setattr(encoders, "packaged_file", lambda encoder: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = run("train", pairs(training={"epochs": 1}), "--out", tmp_path / "run").stdout
    assert "It starts from random numbers" in out and "pip install 'cellseg_nb[encoders]'" in out
    assert read_specification(tmp_path / "run" / "model").encoder_weights == "random"


def test_mistakes_are_named(pairs, tiles, tmp_path):
    def error(**changes):
        return error_of("train", pairs(**changes), "--out", tmp_path / "run")

    assert "there is no folder" in error(data={"dataset": str(tmp_path / "none")})
    assert "unknown loss of masks 'lovasz'" in error(training={"loss": "lovasz"})
    assert "'slide9' is no group" in error(data={"validation_groups": ["slide9"]})
    assert "cannot be cut into 9 folds" in error(data={"folds": 9, "fold": 1})
    assert "training.freez: unknown key" in error(training={"freez": 1})


@pytest.mark.parametrize(
    "kind", ["palette.png", "palette.tif", "gray.png", "bits.png", "colours.png", "compressed.jpg"]
)
def test_masks_in_all_clothes(tmp_path, kind):
    from PIL import Image

    from cellseg_nb.data.pairs import PairSample

    there = np.zeros((64, 64), bool)
    there[10:30, 10:40] = True
    indices = Image.fromarray(there.astype(np.uint8), "P")
    indices.putpalette([255, 255, 255, 0, 0, 0] + [0] * 762)  # white is nothing, black is the mask
    gray = Image.fromarray(np.where(there, 255, 0).astype(np.uint8))
    drawn = {"palette": indices, "bits": gray.convert("1"), "colours": gray.convert("RGB")}.get(
        kind.split(".")[0], gray
    )
    drawn.save(tmp_path / kind)
    sample = PairSample(
        "one", tmp_path / kind, tmp_path / kind, "one", mask_threshold=127 if kind.endswith("jpg") else None
    )
    np.testing.assert_array_equal(sample.mask(), there)
