"""Sweeps by the command `cellseg experiment`: one file asks, one folder holds the answers."""

import json

import pandas as pd
import pytest
import yaml
from test_cli import error_of, run
from test_count_training import SMALL, one_thread, pictures  # noqa: F401  fixtures

from cellseg_nb.run.count import load_counters


@pytest.fixture
def file(pictures, tmp_path):  # noqa: F811
    """An experiment of two trainings, of a few steps each."""
    data = SMALL["data"] | {"dataset": str(pictures), "validation_fraction": 0}
    fields = {
        "name": "tiny",
        "defaults": {key: SMALL[key] for key in SMALL if key != "name"} | {"data": data},
        "folds": 2,
        "draft": {"training.epochs": 1},
        "sweeps": {"points": {"how": "grid", "values": {"data.keep_points": [1.0, 0.5]}}},
    }
    path = tmp_path / "tiny.yml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return path


def test_an_experiment_is_scored_drawn_and_goes_on(file, tmp_path):
    line = ["experiment", file, "--mode", "crossval", "--out", tmp_path / "results"]
    shown = run(*line).stdout
    (folder,) = (tmp_path / "results" / "tiny").iterdir()
    assert folder.name.endswith("-points-crossval") and shown.endswith(f"results: {folder}\n")
    table = pd.read_csv(folder / "results.csv")
    assert table["data.keep_points"].tolist() == [1, 1, 0.5, 0.5]
    assert table["fold"].tolist() == [1, 2, 1, 2] and (table["pictures"] == 5).all()
    assert table["cells"].tolist()[:2] == table["cells"].tolist()[2:]  # half of the points train
    assert table[["MAE", "RMSE", "bias", "seconds"]].notna().all(axis=None)
    assert len(list((folder / "pictures").glob("*.png"))) == 2
    assert (folder / "plots" / "data.keep_points-MAE.png").is_file()
    models = sorted((folder / "trainings").glob("*/fold_*/model/model.json"))
    before = [one.stat().st_mtime_ns for one in models]
    (folder / "trainings" / "keep_points=1.0" / "fold_2" / "held_out.csv").unlink()
    again = run(*line).stdout  # what is missing is scored again, nothing is trained again
    assert len(models) == 4 and again.splitlines()[-6:] == shown.splitlines()[-6:]
    assert [one.stat().st_mtime_ns for one in models][:3] == before[:3]


def test_wrong_keys_name_key_file_and_what_is_allowed(file):
    def line(old, new):
        wrong = file.with_name("wrong.yml")
        wrong.write_text(file.read_text().replace(old, new), encoding="utf-8")
        return error_of("experiment", wrong)

    place = f"error: {file.with_name('wrong.yml')}: "
    unknown = line("data.keep_points", "data.keep")
    assert unknown.startswith(f"{place}sweep points: data.keep: unknown key; allowed here: dataset")
    assert line("sweeps:", "sweep:").startswith(f"{place}sweep: unknown key; allowed here: name")
    hows = f"{place}sweep points: hows: unknown key; allowed here: how, values"
    assert line("how:", "hows:") == hows
    assert "there are: points" in error_of("experiment", file, "--name", "loss")
    assert "draft, crossval, release" in error_of("experiment", file, "--mode", "final")
    assert "there is no file" in error_of("experiment", file.with_name("none.yml"))


def test_a_training_that_fails_does_not_end_the_others(file, tmp_path):
    fields = yaml.safe_load(file.read_text(encoding="utf-8"))
    values = {"training.learning_rate": [1e30, 0.002]}
    fields["sweeps"] = {"rate": {"how": "grid", "values": values}}
    file.write_text(yaml.safe_dump(fields), encoding="utf-8")
    done = run("experiment", file, "--out", tmp_path / "results", code=1)
    (folder,) = (tmp_path / "results" / "tiny").iterdir()
    failures = pd.read_csv(folder / "failures.csv")
    assert failures["training"].tolist() == ["learning_rate=1e+30"]
    assert done.stderr.strip() == f"error: learning_rate=1e+30: {failures['reason'][0]}"
    assert "train with a smaller" in failures["reason"][0]
    assert pd.read_csv(folder / "results.csv")["training"].tolist() == ["learning_rate=0.002"]
    fields["sweeps"]["rate"]["values"] = {"network.encoder": ["mobilenet_v2", "mobilenet_v22"]}
    file.write_text(yaml.safe_dump(fields), encoding="utf-8")
    assert "sweep rate: encoder=mobilenet_v22: encoder" in error_of("experiment", file)


def test_a_release_is_trained_on_all_pictures_and_has_intervals(file, pictures, tmp_path):  # noqa: F811
    done = run("experiment", file, "--mode", "release", "--out", tmp_path / "results")
    (folder,) = (tmp_path / "results" / "tiny").iterdir()
    inside = folder / "trainings" / "defaults"
    assert f"model: {inside / 'all' / 'model'}\n" in done.stdout
    about = json.loads((inside / "all" / "model" / "model.json").read_text(encoding="utf-8"))
    assert "10 pictures" in about["data"] and "fold" not in about["calibration"]
    picture, tables = pictures / "images" / "phase_9.png", {}
    for name, model in {"all": inside / "all" / "model", "folds": inside}.items():
        run("count", picture, "--model", model, "--out", tmp_path / name)
        tables[name] = pd.read_csv(tmp_path / name / "counts.csv").iloc[0]
    assert all(one["low"] <= one["count"] <= one["high"] for one in tables.values())
    folds = load_counters(inside)  # with the models of all folds, the interval is CV+
    assert [one.specification.calibration["fold"] for one in folds] == ["1", "2"]
    plain = ("count", picture, "--model", inside, "--no-flips", "--out", tmp_path / "plain")
    assert "come without an interval" in run(*plain).stderr
    assert pd.read_csv(tmp_path / "plain" / "counts.csv")["low"].isna().all()


def test_a_sweep_of_segmentation_is_scored_by_overlap(tmp_path):
    fields = {
        "name": "outlines",
        "defaults": {
            "data": {"images": 4},
            "network": {"decoder_channels": [8, 8, 8, 8, 8]},
            "training": {"epochs": 1, "crops_per_epoch": 4, "batch_size": 4, "crop_px": 64},
        },
        "folds": 2,
        "draft": {},
        "sweeps": {"seed": {"values": {"seed": [1]}}},
    }
    file = tmp_path / "outlines.yml"
    file.write_text(yaml.safe_dump(fields), encoding="utf-8")
    run("experiment", file, "--out", tmp_path / "results")
    (folder,) = (tmp_path / "results" / "outlines").iterdir()
    table = pd.read_csv(folder / "results.csv")
    assert table["training"].tolist() == ["defaults", "seed=1"]
    assert table[["AP@.5", "mean AP", "seconds"]].notna().all(axis=None)
    assert len(list((folder / "pictures").glob("*.png"))) == 2
