"""Ablation marks: the shipped model, data set folders from pictures to numbers, resuming, failures, hands, training data in parts."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from cellseg_nb.data.io import read_labels, read_pixels, write_image
from cellseg_nb.data.simulate_marks import simulate_marks, write_mark_pairs, write_simulated_marks
from cellseg_nb.measure.overlap import pixel_counts, pool_pixels
from cellseg_nb.models.bundle import find_bundle, load_bundle, read_specification
from cellseg_nb.run.cli import app
from cellseg_nb.run.marks import STEP_VERSION, Step, find_groups, matrix_model, run_marks
from cellseg_nb.segment.marks import MarkSettings, find_marks

SETTINGS = MarkSettings(rows=9, cols=9, tile_px=256, overlap_px=64)
QUIET = {"angle_deg": 4.0, "missing": 0.05, "n_specks": 10, "n_dust": 1}
FOLDERS = ["am_coords", "source", "source_norm", "tiles", "tiles_stitched", "truth"]


def simulated(folder, groups=("a", "b")):
    return write_simulated_marks(folder, groups, (420, 420), 9, 9, "DHB", seed=60, **QUIET)


def wrong_numbers(dataset, group):
    """Marks that were found and have another number than the truth; how many were found."""
    numbers = read_labels(dataset / "am_coords" / group / f"{group}_labels.tif")
    truth = read_labels(dataset / "truth" / group / f"{group}_labels.tif")
    both = (numbers > 0) & (truth > 0)
    pairs = pd.DataFrame({"found": numbers[both], "true": truth[both]}).value_counts().reset_index()
    best = pairs.drop_duplicates("true")  # the number that most of a mark has
    return int((best.found != best.true).sum()), len(best)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A data set of two groups, all steps done."""
    dataset = simulated(tmp_path_factory.mktemp("marks") / "set")
    found = run_marks(dataset, None, SETTINGS, workers=1)
    assert not found.failures, found.failures
    return dataset, found


def test_the_shipped_model_is_small_and_says_what_it_is():
    folder = find_bundle("marks")
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10e6
    about = read_specification("marks")
    assert (about.licence, about.network.in_channels, about.normalisation.per_image) == ("CC0-1.0", 1, True)
    assert about.training["command"].startswith("cellseg train marks") and about.scores["validation"]["Dice"] > 0.8


def test_marks_of_simulated_pictures_never_seen():
    bundle, counts = load_bundle("marks"), []
    for number, matrix in enumerate(("DHB", "DAN", "DHB", "DAN")):
        made = simulate_marks((384, 384), 8, 8, matrix, missing=0.1, n_specks=15, seed=4_000_000 + number)
        counts.append(pixel_counts(made.mask, find_marks(made.image, bundle, SETTINGS)))
    assert pool_pixels(counts).f1 > 0.88


def test_folders_lie_as_their_users_know_them(finished):
    dataset, found = finished
    assert sorted(one.name for one in dataset.iterdir() if one.is_dir() and one.name != ".resume") == FOLDERS
    assert sorted(one.name for one in (dataset / "tiles" / "a").iterdir()) == ["mask", "source"]
    names = [{path.name for path in (dataset / "tiles/a" / kind).iterdir()} for kind in ("mask", "source")]
    assert names[0] == names[1] and len(names[0]) == 4
    assert set(np.unique(read_pixels(dataset / "tiles_stitched/a/a_mask.png"))) == {0, 255}
    assert len(list((dataset / "am_coords/b").iterdir())) == 5
    assert found.table["group"].tolist() == ["a", "b"]
    facts = json.loads((dataset / "marks_run.json").read_text())
    assert facts["settings"]["rows"] == 9 and set(facts["model"]["files"]) == {"model.json", "weights.safetensors"}


def test_all_numbers_are_those_of_the_truth(finished):
    dataset, _ = finished
    for group in "ab":
        wrong, n = wrong_numbers(dataset, group)
        assert wrong == 0 and n > 65


def test_a_second_run_does_nothing(finished):
    dataset, _ = finished
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*.png")}
    again = run_marks(dataset, None, SETTINGS, workers=1)
    assert again.done == {"a": [], "b": []} and len(again.table) == 2
    assert before == {path: path.stat().st_mtime_ns for path in dataset.rglob("*.png")}


def test_other_rows_only_number_again_and_are_refused(finished):
    dataset, _ = finished
    found = run_marks(dataset, ["a"], SETTINGS.model_copy(update={"rows": 12}), workers=1)
    assert "12 rows" in found.failures["a"]
    assert pd.read_csv(dataset / "marks_summary.csv").group.tolist() == ["b"]
    again = run_marks(dataset, ["a"], SETTINGS.model_copy(update={"rows": 12}), workers=1)
    assert again.failures == found.failures and not any((dataset / "am_coords/a").iterdir())
    back = run_marks(dataset, ["a"], SETTINGS, workers=1)
    assert back.done["a"] == ["register"] and not back.failures
    assert pd.read_csv(dataset / "marks_summary.csv").group.tolist() == ["a", "b"]  # whichever group was done last


def test_a_corrected_tile_is_kept_and_what_follows_is_done_again(tmp_path):
    dataset = simulated(tmp_path / "set", ["a"])
    run_marks(dataset, None, SETTINGS, workers=1)
    tile = sorted((dataset / "tiles/a/mask").iterdir())[0]
    corrected = read_pixels(tile).copy()
    corrected[20:30, 20:50] = 255
    write_image(tile, corrected, "YX")
    again = run_marks(dataset, None, SETTINGS, workers=1)
    assert again.done["a"] == ["stitch", "register"]
    assert (read_pixels(tile) == corrected).all() and read_pixels(dataset / "tiles_stitched/a/a_mask.png")[
        25, 30
    ] == 255
    other = run_marks(dataset, None, SETTINGS.model_copy(update={"threshold": 0.3}), workers=1)
    assert "changed after" in other.failures["a"] and (read_pixels(tile) == corrected).all()
    tile.write_bytes(tile.read_bytes()[:100])  # no picture any more
    mended = run_marks(dataset, None, SETTINGS, workers=1)
    assert mended.done["a"][0] == "segment" and not mended.failures and read_pixels(tile).shape == corrected.shape


def test_numbers_that_a_png_cannot_hold_and_another_version(finished, tmp_path, monkeypatch):
    dataset = shutil.copytree(finished[0], tmp_path / "set")
    monkeypatch.setattr("cellseg_nb.__version__", "9.9.9")
    assert run_marks(dataset, None, SETTINGS, workers=1).done == {"a": [], "b": []}
    monkeypatch.setattr("cellseg_nb.segment.grid_files.MOST_IN_PNG", 50)
    monkeypatch.setitem(STEP_VERSION, "register", 2)
    assert run_marks(dataset, ["a"], SETTINGS, workers=1).done == {"a": ["register"]}
    assert len(list((dataset / "am_coords/a").iterdir())) == 4 and not (dataset / "am_coords/a/a_labels.png").exists()
    assert run_marks(dataset, ["a"], SETTINGS, workers=1).done == {"a": []}
    (dataset / "marks_summary.csv").write_text("no table")
    with pytest.warns(UserWarning, match="marks_summary.csv is damaged"):
        run_marks(dataset, ["b"], SETTINGS, workers=1)
    shutil.rmtree(dataset / "source/b")
    run_marks(dataset, ["a"], SETTINGS, workers=1)
    assert pd.read_csv(dataset / "marks_summary.csv").group.tolist() == ["a"]


def step_of(folder, threshold, value, dies_at=None, **how):
    """Run a step of four small masks; it may be interrupted before one of them."""

    def make(missing, wrote):
        for number, name in enumerate(missing):
            if number == dies_at:
                raise KeyboardInterrupt
            write_image(folder / name, np.full((8, 8), value, np.uint8), "YX")
            wrote(name)

    return Step(folder, "g.segment", {"threshold": threshold}, [f"m/{n}.png" for n in range(4)], **how).run(make)


def values_of(folder):
    return [int(read_pixels(folder / f"m/{n}.png").max()) for n in range(4)]


def test_an_interruption_after_a_change_leaves_no_masks_of_two_settings(tmp_path):
    step_of(tmp_path, 1, 10)
    with pytest.raises(KeyboardInterrupt):
        step_of(tmp_path, 2, 20, dies_at=2)
    assert len(list((tmp_path / "m").iterdir())) == 2
    assert step_of(tmp_path, 2, 20) and values_of(tmp_path) == [20] * 4
    assert not step_of(tmp_path, 2, 20)


def test_a_file_of_others_in_a_finished_step_is_left_alone(tmp_path):
    step_of(tmp_path, 1, 10)
    other = Step(tmp_path, "g.segment", {"threshold": 2}, ["m/0.png", "m/mine.png"])
    (tmp_path / "m/mine.png").write_text("mine")
    with pytest.raises(ValueError, match="mine.png was not made by this command; use --overwrite"):
        other.run(lambda missing, wrote: None)
    assert values_of(tmp_path) == [10] * 4


def test_what_was_corrected_after_an_interruption_is_known(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        step_of(tmp_path, 1, 10, dies_at=2)
    journal = tmp_path / ".resume/marks/g.segment.jsonl"
    assert len(journal.read_text().splitlines()) == 2
    with journal.open("a") as file:
        file.write('["m/2.p')  # cut off
    write_image(tmp_path / "m/0.png", np.full((8, 8), 77, np.uint8), "YX")
    with pytest.raises(KeyboardInterrupt):  # once more
        step_of(tmp_path, 1, 10, dies_at=1)
    write_image(tmp_path / "m/2.png", np.full((8, 8), 78, np.uint8), "YX")
    with pytest.raises(ValueError, match="0.png, .*2.png were changed after .*; use --overwrite to lose"):
        step_of(tmp_path, 2, 20)
    assert step_of(tmp_path, 1, 10) and values_of(tmp_path) == [77, 10, 78, 10] and not journal.exists()
    with pytest.raises(ValueError, match="were changed"):
        step_of(tmp_path, 2, 20)
    assert step_of(tmp_path, 2, 20, overwrite=True) and values_of(tmp_path) == [20] * 4


def test_a_broken_group_does_not_stop_the_others(tmp_path):
    dataset = simulated(tmp_path / "set")
    picture = dataset / "source/a/a.png"
    picture.write_bytes(picture.read_bytes()[:2000])
    (dataset / "source" / "c").mkdir()
    line = f"marks run {dataset} --rows 9 --cols 9 --tile-size 256 --overlap 64 --workers 1"
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 1
    errors = result.stderr.strip().splitlines()
    assert [one.split(":")[1].strip() for one in errors if one.startswith("error")] == ["a", "c"]
    assert "b: normalise" in result.stdout and wrong_numbers(dataset, "b")[0] == 0
    picture.unlink()
    simulated(dataset)
    result = CliRunner().invoke(app, [*line.split(), "a", "b"])
    assert result.exit_code == 0 and "b: finished before" in result.stdout


def test_files_of_others_are_left_alone(tmp_path):
    dataset = simulated(tmp_path / "set", ["a"])
    (dataset / "source_norm/a").mkdir(parents=True)
    (dataset / "source_norm/a/a.png").write_text("mine")
    found = run_marks(dataset, None, SETTINGS, workers=1)
    assert "not made by this command" in found.failures["a"]
    assert (dataset / "source_norm/a/a.png").read_text() == "mine"


def test_wrong_calls_are_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        find_groups(tmp_path)
    (tmp_path / "source").mkdir()
    with pytest.raises(FileNotFoundError, match="has no folders"):
        find_groups(tmp_path)
    (tmp_path / "source/a").mkdir()
    with pytest.raises(FileNotFoundError, match="no group 'b'; there is: a"):
        find_groups(tmp_path, ["b"])
    with pytest.raises(ValueError, match="task: pairs"):
        run_marks(tmp_path, None, SETTINGS, "nuclei")
    assert matrix_model(tmp_path, "DHB") == "marks"
    for line in ("marks run {} --rows 0", "marks run {} --matrix CHCA", "marks run {} --tile-size 64 --overlap 64"):
        result = CliRunner().invoke(app, line.format(tmp_path).split())
        assert result.exit_code == 2, result.output


def test_processes_paint_and_a_killed_run_goes_on(tmp_path):
    dataset = simulated(tmp_path / "set", ["a"])
    line = f"marks run {dataset} --rows 9 --cols 9 --tile-size 128 --overlap 32 --workers 2"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", "from cellseg_nb.run.cli import main; main()", *line.split()],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    masks = dataset / "tiles/a/mask"
    while process.poll() is None and not (masks.is_dir() and any(masks.glob("[!.]*.png"))):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    there = {path: path.stat().st_mtime_ns for path in masks.glob("[!.]*.png")}
    assert there
    settings = MarkSettings(rows=9, cols=9, tile_px=128, overlap_px=32)
    found = run_marks(dataset, None, settings, workers=1)
    assert not found.failures and not list(Path(dataset).rglob(".cellseg*"))
    assert there == {path: path.stat().st_mtime_ns for path in there}
    assert wrong_numbers(dataset, "a")[0] == 0


def test_a_model_learns_on_from_labelled_tiles(tmp_path):
    write_mark_pairs(tmp_path, 24, 64, seed=9)
    short = "training.epochs=1 training.steps_per_epoch=2 training.batch_size=2 training.crop_px=64".split()
    result = CliRunner().invoke(app, ["marks", "train", str(tmp_path), "--matrix", "DHB", "--force", *short])
    assert result.exit_code == 0, result.output
    assert matrix_model(tmp_path, "DHB") == str(tmp_path / "models/DHB/model")
    about = read_specification(tmp_path / "models/DHB/model")
    assert about.training["config"]["training"]["dropout"] == 0.3 and about.training["config"]["start_from"] == "marks"


def test_labels_spread(tmp_path):
    write_mark_pairs(tmp_path, 24, 64, seed=9)
    for number, group in enumerate("ab"):
        write_image(tmp_path / f"source/{group}/0.png", simulate_marks((160, 160), 4, 4, seed=5 + number)[0], "YX")
    short = "training.epochs=1 training.steps_per_epoch=2 training.batch_size=2 training.crop_px=64".split()
    line = [
        "marks",
        "spread",
        str(tmp_path),
        "--config",
        "marks-dhb",
        "--rounds",
        "1",
        "--tile-size",
        "80",
        "--least",
        "0.3",
        *short,
    ]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    out = tmp_path / "models/spread"
    assert all(read_pixels(out / f"round1/full/{group}/0_confidence.png").shape == (160, 160) for group in "ab")
    assert sorted(one.name for one in (out / "round1/data/train/pseudo").iterdir()) == ["a_0", "b_0"]
    rows = pd.read_csv(out / "rounds.csv")
    assert rows["round"].tolist() == [0, 1] and rows["sure_tiles"][1] > 0
    best = int(rows["Dice"].argmax())
    assert (out / "model/weights.safetensors").read_bytes() == (
        out / f"round{best}/model/weights.safetensors"
    ).read_bytes()
    assert CliRunner().invoke(app, line).exit_code == 0  # all is found again
    other = CliRunner().invoke(app, [*line, "--least", "0.4"])
    assert other.exit_code == 2 and "round1 was made from other tiles; choose another --out" in other.stderr
    area = next((tmp_path / "train").glob("*/*/source"))
    for kind in ("source", "mask"):
        shutil.copy(next((area.parent / kind).iterdir()), area.parent / kind / "drawn_later.png")
    other = CliRunner().invoke(app, line)
    assert other.exit_code == 2 and "round0 was made from other drawn areas; choose" in other.stderr
