"""Training of models that count by the command `cellseg`: a small configuration, cross-validation, errors."""

from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from test_cli import error_of, run

from cellseg_nb.data.io import write_image
from cellseg_nb.data.phase import simulate_phase_contrast
from cellseg_nb.train.count import count_pictures
from cellseg_nb.train.settings import CountDataSettings

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
        image, points, _ = simulate_phase_contrast(
            (64, 64), 2 + number, diameter_px=8, seed=number
        )
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
    assert "not for StarDist or counting" in error_of("train", config, "--find-lr")


def test_images_that_are_not_trusted_do_not_train(pictures):
    words = 7 * ["fully", "ok"] + ["MISSING", "ok", "CONFLICT", "ok", "sparse", "BAD"]
    rows = [f"phase_{n},{words[2 * n]},{words[2 * n + 1]}" for n in range(10)]
    table = "\n".join(["image,annotation_status,fgmask_status", *rows, ""])
    (pictures / "data_quality.csv").write_text(table, encoding="utf-8")
    chosen = count_pictures(CountDataSettings(dataset=str(pictures), split=None))
    assert [one.name for one in chosen] == [f"phase_{n}" for n in range(7)]


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
