"""Sweeps by the command `cellseg experiment`: one file asks, one folder holds the answers."""

import pandas as pd
import pytest
import yaml
from test_cli import error_of, run
from test_count_training import SMALL, one_thread, pictures  # noqa: F401  fixtures


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
