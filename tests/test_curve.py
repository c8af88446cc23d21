"""Learning curves by the command `cellseg experiment --curve`: how many labels are enough, and which pictures are next."""

import pandas as pd
import pytest
import yaml
from test_cli import error_of, run
from test_count_training import SMALL, one_thread, pictures  # noqa: F401  fixtures

from cellseg_nb.data.io import write_image
from cellseg_nb.data.simulate import simulate_nuclei

TINY = {
    "name": "tiny",
    "data": {"images": 8, "validation_fraction": 0.25},
    "network": {"decoder_channels": [8, 8, 8, 8, 8]},
    "training": {"epochs": 1, "crops_per_epoch": 4, "batch_size": 4, "crop_px": 64, "device": "cpu"},
}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yml"
    path.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    return path


def test_a_curve_is_trained_predicted_drawn_and_goes_on(config, tmp_path):
    new = tmp_path / "new"
    for number in range(3):
        write_image(new / f"new_{number}.tif", simulate_nuclei((96, 96), 8, seed=number)[0], "YX")
    line = ["experiment", config, "--curve", "1,2,4", "--out", tmp_path / "results"]
    shown = run(*line, "--predict", "12").stdout
    folder = tmp_path / "results" / "tiny" / "curve"
    assert "\n12 pictures: AP@.5 about " in shown and "\n12 pictures: mean AP about " in shown
    assert "; twice as many as now would gain " in shown
    assert shown.endswith(f"picture: {folder / 'curve.png'}\ntable: {folder / 'curve.csv'}\n")
    table = pd.read_csv(folder / "curve.csv")
    assert list(table) == ["n", "AP@.5", "mean AP", "seconds"] and table["n"].tolist() == [1, 2, 4]
    models = sorted(folder.glob("*/model/model.json"))
    before = [one.stat().st_mtime_ns for one in models]
    (new / "broken.tif").write_bytes(b"no picture")
    again = run(*line, "--rank", new, code=1)
    assert [one.stat().st_mtime_ns for one in models] == before and len(before) == 3
    assert "\n8 pictures: AP@.5 about " in again.stdout and "broken.tif" in again.stderr
    ranking = pd.read_csv(folder / "next.csv")
    assert list(ranking) == ["file", "disagreement", "rank"] and ranking["rank"].tolist() == [1, 2, 3]
    names = ", ".join(name.rpartition("/")[2] for name in ranking["file"])
    assert f"label next: {names}\nranking: {folder / 'next.csv'}\n" in again.stdout


def test_errors_of_counts_fall(pictures, tmp_path):  # noqa: F811
    fields = SMALL | {"data": SMALL["data"] | {"dataset": str(pictures)}}
    file = tmp_path / "small.yml"
    file.write_text(yaml.safe_dump(fields), encoding="utf-8")
    line = ["experiment", file, "training.steps_per_epoch=1", "--curve", "2,4,6", "--out", tmp_path / "results"]
    shown = run(*line).stdout
    assert "\n12 pictures: MAE about " in shown and "would lower it by " in shown
    table = pd.read_csv(tmp_path / "results" / "small" / "curve" / "curve.csv")
    assert list(table) == ["n", "MAE", "RMSE", "seconds"] and (table["RMSE"] >= table["MAE"]).all()
    assert "the recipe 'count' do not" in error_of(*line, "--rank", tmp_path)


def test_wrong_questions_are_refused(config, tmp_path):
    line = ["experiment", config, "--out", tmp_path / "results"]
    assert "needs at least 3 different numbers" in error_of(*line, "--curve", "5,10")
    assert "9 pictures are asked for, and 6 are left" in error_of(*line, "--curve", "1,2,9")
    assert "such as 5,10,20,40, or auto; it is 'few'" in error_of(*line, "--curve", "few")
    assert "leave out --name and --mode" in error_of(*line, "--curve", "1,2,4", "--mode", "crossval")
    assert "belong to --curve" in error_of(*line, "--predict", "20")
    assert "data.train_images is set by the curve" in error_of(*line, "data.train_images=3", "--curve", "1,2,4")
    assert "nowhere" in error_of(*line, "--curve", "1,2,4", "--rank", tmp_path / "nowhere")
    assert "data.train_images is 7, and 6 pictures are left" in error_of(
        "train", config, "data.train_images=7", "--out", tmp_path / "run"
    )
    assert not (tmp_path / "results").exists()
