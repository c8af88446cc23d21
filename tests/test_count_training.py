"""Training of models that count by the command `cellseg`: a small configuration, cross-validation, errors."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from test_cli import error_of, run

from cellseg_nb.data.io import read_pixels, write_image
from cellseg_nb.data.phase import simulate_phase_contrast, write_phase_contrast
from cellseg_nb.train.count_pictures import count_pictures, for_training, read_count_pictures
from cellseg_nb.train.recipes.count import CountDataSettings, CountTrainConfig

SMALL = {
    "name": "small",
    "task": "count",
    "data": {"split": None, "validation_fraction": 0.25},
    "network": {"encoder": "mobilenet_v2", "encoder_depth": 3, "decoder_channels": [24, 16, 16]},
    "training": {
        "epochs": 1,
        "steps_per_epoch": 2,
        "batch_size": 2,
        "crop_px": 64,
        "device": "cpu",
        "precision": "float32",
    },
}


@pytest.fixture(autouse=True)
def one_thread():
    """Small pictures are computed faster by one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of ten pictures of 64 px with points."""
    folder, rows = tmp_path / "pictures", []
    for number in range(10):
        name = f"phase_{number}.png"
        image, points, _ = simulate_phase_contrast((64, 64), 2 + number, diameter_px=8, seed=number)
        write_image(folder / "images" / name, image, "YX")
        rows += [{"image": name, "x": x, "y": y} for y, x in points]
    pd.DataFrame(rows).to_csv(folder / "points.csv", index=False)
    return folder


@pytest.fixture
def config(pictures, tmp_path) -> Path:
    """A configuration of a few seconds."""
    fields = SMALL | {"data": SMALL["data"] | {"dataset": str(pictures)}}
    path = tmp_path / "small.yml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return path


def test_train_writes_a_model_that_counts(config, tmp_path):
    shown = run("train", config, "--out", tmp_path / "run").stdout
    assert "valid_mae" in shown and shown.endswith(f"model: {tmp_path / 'run' / 'model'}\n")
    assert '"task": "count"' in run("model", "show", tmp_path / "run" / "model").stdout
    assert "go on with --resume" in error_of("train", config, "--out", tmp_path / "run")
    line = error_of("train", config, "target.sigma=3")
    assert f"{config}: target.sigma: unknown key; allowed here: " in line and "sigma_px" in line
    found = run("train", config, "--find-lr", "--out", tmp_path / "rate").stdout
    assert found.startswith("suggestion: training.learning_rate=")


def test_images_that_are_not_trusted_do_not_train(pictures):
    words = 7 * ["fully", "ok"] + ["MISSING", "ok", "CONFLICT", "ok", "sparse", "BAD"]
    rows = [f"phase_{n},{words[2 * n]},{words[2 * n + 1]}" for n in range(10)]
    table = "\n".join(["image,annotation_status,fgmask_status", *rows, ""])
    (pictures / "data_quality.csv").write_text(table, encoding="utf-8")
    chosen = count_pictures(CountDataSettings(dataset=str(pictures), split=None))
    assert [one.name for one in chosen] == [f"phase_{n}" for n in range(7)]


@pytest.fixture
def project(tmp_path) -> Path:
    """Eight simulated pictures with masks; a person overlooked half of the cells in most of them."""
    folder = tmp_path / "project"
    write_phase_contrast(folder, 8, annotators={"anna": {"miss_rate": 0.5}}, shape=(96, 96), n_cells=9)
    quality = pd.read_csv(folder / "data_quality.csv")
    quality.loc[:2, "annotation_status"] = "fully"
    quality.loc[3:, "annotation_status"] = "sparse"
    quality.to_csv(folder / "data_quality.csv", index=False)
    return folder


def test_sparse_points_train_with_masks_and_are_never_scored(project):
    data = {"dataset": str(project), "split": None, "folds": 3, "fold": 1, "validation_fraction": 0}
    config = CountTrainConfig(name="sparse", data=data | {"max_distance_px": 12})
    train, _, left_out = read_count_pictures(config)
    assert (len(train), len(left_out)) == (7, 1) and all(one.complete for one in left_out)
    sparse = [one for one in train if not one.complete]
    assert len(sparse) == 5 and all(one.known is not None for one in sparse)
    for one in sparse:  # what is ignored is foreground, and no point lies in it
        assert 0 < (~one.known).sum() and not (~one.known & ~one.mask).any()
        assert one.known[tuple(one.points.round().astype(int).T)].all()
    with pytest.warns(UserWarning, match="5 of 7 pictures are marked sparsely"):
        read_count_pictures(CountTrainConfig(name="sparse", data=data))
    with pytest.raises(ValueError, match="3 pictures with a point on every cell cannot be cut"):
        read_count_pictures(CountTrainConfig(name="sparse", data=data | {"folds": 4}))


def test_a_mask_of_another_size_is_named(project):
    mask = project / "masks" / "phase_004.png"
    write_image(mask, np.zeros((50, 96), np.uint8), "YX")
    chosen = CountDataSettings(dataset=str(project), split=None, max_distance_px=12)
    with pytest.raises(ValueError, match=r"phase_004.png has \(50, 96\) pixels"):
        count_pictures(chosen)


def test_a_share_of_the_points_hides_cells_only_in_training(project):
    data = CountDataSettings(dataset=str(project), split=None, max_distance_px=12, keep_points=0.5)
    whole = count_pictures(data)[0]
    half = for_training(whole, data)
    assert len(half.points) == round(len(whole.points) / 2) and not half.complete
    assert whole.known is None and (~half.known).any()


def test_folds_print_their_scores_and_go_on(config, pictures, tmp_path):
    line = ["train", config, "data.validation_fraction=0", "--folds", 2, "--out", tmp_path / "run"]
    shown = run(*line).stdout
    assert "fold  pictures  cells" in shown and "pooled" in shown
    table = pd.read_csv(tmp_path / "run" / "cross_validation.csv")
    assert table["pictures"].tolist() == [5, 5, 10, 10, 10]
    assert table["MAE"].notna().all()
    assert table["cells"].iloc[-1] == len(pd.read_csv(pictures / "points.csv"))
    written = (tmp_path / "run" / "fold_1" / "checkpoint.pt").stat().st_mtime_ns
    again = run(*line).stdout
    assert again.splitlines()[-8:] == shown.splitlines()[-8:]
    assert (tmp_path / "run" / "fold_1" / "checkpoint.pt").stat().st_mtime_ns == written


def test_a_channel_of_the_pictures_is_chosen(pictures):
    for path in sorted((pictures / "images").iterdir()):
        pixels = read_pixels(path)
        path.unlink()
        write_image(path.with_suffix(".ome.tif"), np.stack([pixels, 0 * pixels]), "CYX")
    with pytest.raises(ValueError, match="channel"):
        count_pictures(CountDataSettings(dataset=str(pictures), split=None))
    chosen = count_pictures(CountDataSettings(dataset=str(pictures), split=None, channel=0))
    assert len(chosen) == 10 and all(one.image.any() for one in chosen)
