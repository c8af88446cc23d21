"""Two runs at once, results changed by hand or damaged, records that are none of ours, a full disk, threads, and quiet starts."""

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import tifffile
from test_cli import error_of, run

from cellseg_nb.core import file_sha256, folder_lock, temporary_beside
from cellseg_nb.data.downloads import download
from cellseg_nb.data.io import read_labels, write_image, write_labels
from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.run import runner
from cellseg_nb.run.analyse import SegmentSettings, analyse
from cellseg_nb.run.records import record_path

START = [sys.executable, "-c", "from cellseg_nb.run.cli import main; main()"]
HOLD = """
import sys, time
from cellseg_nb.core import claim
with claim(sys.argv[1], "x"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def pictures(tmp_path) -> Path:
    for seed in range(2):
        write_image(tmp_path / f"in/i{seed}.tif", simulate_nuclei((96, 128), 8, seed=seed)[0], "YX")
    return tmp_path / "in"


@pytest.fixture
def out(pictures, tmp_path) -> Path:
    """Results of a run, with exports."""
    analyse(pictures, tmp_path / "out", "otsu", SegmentSettings(exports=("roi", "zarr")))
    return tmp_path / "out"


def again(pictures, out, exports=("roi", "zarr"), **how):
    """The same run once more, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = SegmentSettings(exports=exports, **how)
        summary = analyse(pictures, out, "otsu", settings)
    return summary, " ".join(str(one.message) for one in caught)


@pytest.fixture
def other_process(tmp_path):
    """Holds the claim of a folder until it is ended."""
    held = []

    def hold(lock: Path):
        process = subprocess.Popen([sys.executable, "-c", HOLD, lock], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "held\n"
        held.append(process)
        return process

    yield hold
    for process in held:
        process.kill()
        process.wait()
        process.stdout.close()


# Two at once


@pytest.mark.parametrize(
    "command",
    [
        ("segment", "PICTURES", "--model", "otsu", "--out", "OUT"),
        ("count", "PICTURES", "--out", "OUT"),
        ("segment3d", "STACK", "--out", "OUT"),
        ("graph", "STACK", "--out", "OUT"),
        ("train", "nuclei", "--out", "OUT"),
        ("train", "nuclei", "--folds", "2", "--out", "OUT"),
    ],
    ids=lambda words: " ".join(words[:1] + words[2:3]),
)
def test_a_second_run_is_refused_with_the_name_of_the_first(command, pictures, tmp_path, other_process):
    write_image(tmp_path / "stack.tif", np.zeros((4, 32, 32), np.float32), "ZYX")
    places = {"PICTURES": pictures, "STACK": tmp_path / "stack.tif", "OUT": tmp_path / "out"}
    process = other_process(folder_lock(tmp_path / "out"))
    words = [places.get(word, word) for word in command]
    said = error_of(*words)
    assert f"{tmp_path / 'out'} is in use by another run (process {process.pid} on " in said
    assert ", since 20" in said and "wait until it has ended, or choose another folder" in said


def test_a_project_is_run_by_one_process(tmp_path, other_process):
    run("init", tmp_path / "study")
    process = other_process(tmp_path / "study/.cellseg/lock")
    assert f"in use by another run (process {process.pid}" in error_of(
        "pipeline", "run", "--project", tmp_path / "study"
    )


def test_a_run_that_was_killed_holds_nothing(pictures, out, other_process):
    process = other_process(folder_lock(out))
    process.kill()
    process.wait()
    assert folder_lock(out).exists()
    summary, _ = again(pictures, out)
    assert summary.resumed == ["i0", "i1"] and not folder_lock(out).exists()


def test_two_commands_started_together_give_one_result(pictures, out, tmp_path):
    both = tmp_path / "both"
    words = [*START, "segment", pictures, "--model", "otsu", "--zarr", "--roi", "--out", both]
    runs = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [one.communicate()[1] for one in runs]
    codes = [one.returncode for one in runs]
    assert 0 in codes and all(not code or "in use by another run" in text for code, text in zip(codes, said)), said
    assert (both / "objects.csv").read_bytes() == (out / "objects.csv").read_bytes()
    for name in ("i0", "i1"):
        assert (read_labels(both / f"{name}_labels.zarr") == read_labels(out / f"{name}_labels.tif")).all()
    assert not [path for path in both.iterdir() if path.name[0] == "." and path.name != ".resume"]


def test_two_downloads_of_a_file_wait_for_each_other(tmp_path, other_process):
    (tmp_path / "source").write_bytes(b"whole")
    sha256 = file_sha256(tmp_path / "source")
    process = other_process(tmp_path / ".file.lock")
    code = "import sys; from cellseg_nb.data.downloads import download; download(*sys.argv[1:])"
    address = "http://127.0.0.1:9/not-asked"
    words = [sys.executable, "-c", code, address, tmp_path / "file", sha256]
    waiting = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert f"file: waiting for process {process.pid} on" in waiting.stderr.readline()
    (tmp_path / "file").write_bytes(b"whole")  # the first one has it
    process.kill()
    assert waiting.wait(60) == 0
    waiting.stderr.close()
    assert (tmp_path / "file").read_bytes() == b"whole" and not list(tmp_path.glob("*.part"))
    assert download(address, tmp_path / "file", sha256) == tmp_path / "file"


def test_the_experiment_counts_two_that_refuse_each_other(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent / "experiments")
    from hardships import Tried, at_once

    def work(out):
        return lambda: "two_1" in out.name and print("in use by another run (process 1)") is None

    tried = Tried("refused")
    at_once(tried, 1, tmp_path, work)
    assert (tried.times, tried.survived) == (1, 0) and "exit codes [1, 1]: in use by" in tried.remarks[0]


# What lies in the folder of results


def test_what_a_killed_run_left_is_cleared(pictures, out):
    (out / ".mine").touch()
    for path in (out / "x.tif", record_path(out, "i0", command="segment")):
        temporary_beside(path).write_text("half")
    temporary_beside(out / "x.zarr").mkdir()
    again(pictures, out)
    assert sorted(path.name for path in out.rglob(".*")) == [".mine", ".resume"]


def edited(path: Path, ids=(7,)) -> np.ndarray:
    """Labels as somebody left them."""
    labels = np.zeros(read_labels(path).shape, np.uint16)
    for n, one in enumerate(ids):
        labels[10 + 20 * n : 20 + 20 * n, 10:20] = one
    write_labels(path, labels)
    return labels


def test_labels_edited_by_hand_are_kept_and_measured(pictures, out):
    labels, before = edited(out / "i0_labels.tif"), pd.read_csv(out / "counts.csv")
    summary, said = again(pictures, out)
    assert "files of 1 image were changed after they were written (i0)" in said and "--overwrite" in said
    assert (read_labels(out / "i0_labels.tif") == labels).all() and summary.resumed == ["i1"]
    counts, objects = pd.read_csv(out / "counts.csv"), pd.read_csv(out / "objects.csv")
    assert counts["count"].tolist() == [1, before["count"][1]]
    mine = objects[objects["image"] == "i0"]
    assert (mine["label"].tolist(), mine["area_px"].tolist()) == ([7], [100])
    assert (read_labels(out / "i0_labels.zarr") == labels).all()  # exports follow the labels
    assert json.loads((out / "run.json").read_text())["edited"] == ["i0"]
    summary, said = again(pictures, out)  # nothing new: finished, and still said
    assert summary.resumed == ["i0", "i1"] and "(i0)" in said and summary.counts["count"][0] == 1
    edited(out / "i0_labels.tif", (3, 9))
    assert again(pictures, out)[0].counts["count"][0] == 2


def test_labels_edited_by_hand_are_replaced_only_with_overwrite(pictures, out):
    labels = edited(out / "i0_labels.tif")
    for _ in range(2):  # before and after they were measured
        summary, _ = again(pictures, out, min_area_px=5)
        (reason,) = summary.failures.values()
        assert "i0_labels.tif was changed after it was written" in reason and "--overwrite" in reason
        assert (read_labels(out / "i0_labels.tif") == labels).all()
        again(pictures, out)
    summary = analyse(pictures, out, "otsu", SegmentSettings(min_area_px=5), overwrite=True)
    assert not summary.failures and summary.counts["count"][0] > 1
    assert not (read_labels(out / "i0_labels.tif") == labels).all()
    assert json.loads((out / "run.json").read_text())["edited"] == []


def test_edited_labels_of_another_shape_are_kept_and_named(pictures, out):
    tifffile.imwrite(out / "i0_labels.tif", np.ones((5, 5), np.uint16))
    summary, _ = again(pictures, out)
    (reason,) = summary.failures.values()
    assert "is (5, 5) now, while" in reason and "--overwrite" in reason
    assert read_labels(out / "i0_labels.tif").shape == (5, 5)


@pytest.mark.parametrize("name", ["i0_labels.tif", "i0_overlay.png", "i0_rois.zip"])
@pytest.mark.parametrize("how", ["emptied", "cut off"])
def test_damaged_results_are_made_again(name, how, pictures, out):
    whole = (out / name).read_bytes()
    (out / name).write_bytes(b"" if how == "emptied" else whole[: len(whole) // 2])
    summary, said = again(pictures, out)
    assert (out / name).read_bytes() == whole and "i1" in summary.resumed and not summary.failures
    assert f"empty or damaged, and made again: {name}" in said


@pytest.mark.parametrize("trouble", [MemoryError(), OSError(errno.EIO, "disk")])
def test_edits_that_cannot_be_judged_are_kept(trouble, pictures, out):
    labels = edited(out / "i0_labels.tif")
    with patch.object(tifffile.TiffPage, "segments", side_effect=trouble):
        _, said = again(pictures, out)
    assert (read_labels(out / "i0_labels.tif") == labels).all() and "made again" not in said


def test_a_damaged_zarr_is_made_again(pictures, out):
    chunk = next(path for path in (out / "i0_labels.zarr/0").rglob("*") if path.is_file() and path.name != "zarr.json")
    chunk.unlink()
    summary, said = again(pictures, out)
    assert "made again: i0_labels.zarr" in said and not summary.failures
    assert (read_labels(out / "i0_labels.zarr") == read_labels(out / "i0_labels.tif")).all()


def test_a_copied_folder_is_finished(pictures, out, tmp_path):
    shutil.copytree(out, tmp_path / "copy", copy_function=shutil.copyfile)
    summary, said = again(pictures, tmp_path / "copy")
    assert (summary.resumed, said) == (["i0", "i1"], again(pictures, out)[1])  # nothing of changes
    assert "changed" not in said and "made again" not in said


def test_a_changed_picture_is_no_reason_to_lose_edits(pictures, out):
    labels = edited(out / "i0_labels.tif")
    write_image(pictures / "i0.tif", simulate_nuclei((96, 128), 8, seed=5)[0], "YX")
    summary, _ = again(pictures, out)
    assert len(summary.failures) == 1 and (read_labels(out / "i0_labels.tif") == labels).all()


# Records


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", '{"file": "/elsewhere.tif"}', "\0\1", "[" * 50_000])
@pytest.mark.parametrize("whose", ["i0", "other"])
def test_a_record_that_is_none_is_named(text, whose, pictures, out):
    record_path(out, whose, command="segment").write_text(text)
    summary, said = again(pictures, out)
    assert f"{whose}.json is damaged or was not written by this command" in said
    assert summary.n_done == 2 and not summary.failures
    assert summary.resumed == (["i1"] if whose == "i0" else ["i0", "i1"])


def test_a_record_in_which_a_word_was_changed_is_not_believed(pictures, out):
    path = record_path(out, "i0", command="segment")
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"row": {"count": 10_000}}))
    summary, _ = again(pictures, out)
    assert summary.counts["count"][0] == record["row"]["count"]


@pytest.mark.parametrize("text", ["", "1,2\n3", "[]"])
def test_a_damaged_table_of_an_item_is_made_again(text, pictures, out):
    before = (out / "objects.csv").read_bytes()
    record_path(out, "i0", ".objects.csv", "segment").write_text(text)
    summary, _ = again(pictures, out)
    assert (out / "objects.csv").read_bytes() == before and summary.resumed == ["i1"]


def test_a_damaged_run_json_is_named_and_replaced(pictures, out):
    (out / "run.json").write_text("[1, 2")
    summary, said = again(pictures, out)
    assert "run.json is damaged" in said and summary.n_done == 2
    assert json.loads((out / "run.json").read_text())["tables"]["counts.csv"] == "segment"


def test_records_are_on_the_disk_before_they_count(pictures, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(number))
    analyse(pictures, tmp_path / "out", "otsu")
    assert len(synced) >= 4  # begun and finished, of two pictures


def test_a_change_in_any_file_of_a_set_is_a_change(pictures, tmp_path):
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="P:0" '
        'DimensionOrder="XYZCT" Type="uint8" SizeX="128" SizeY="96" SizeC="1" SizeZ="2" SizeT="1"><Channel ID="C:0" '
        'SamplesPerPixel="1"/><TiffData FirstZ="0" IFD="0"><UUID FileName="z0.ome.tif">urn:uuid:0</UUID></TiffData>'
        '<TiffData FirstZ="1" IFD="0"><UUID FileName="z1.ome.tif">urn:uuid:1</UUID></TiffData></Pixels></Image></OME>'
    )
    folder = tmp_path / "set"
    folder.mkdir()
    for z in range(2):
        picture = (simulate_nuclei((96, 128), 8, seed=z)[0] / 256).astype(np.uint8)
        tifffile.imwrite(folder / f"z{z}.ome.tif", picture, description=xml, metadata=None)
    first = folder / "z0.ome.tif"
    assert again(first, tmp_path / "o", (), z=1)[0].resumed == []
    assert again(first, tmp_path / "o", (), z=1)[0].resumed == ["z0"]
    changed = (simulate_nuclei((96, 128), 8, seed=7)[0] / 256).astype(np.uint8)
    tifffile.imwrite(folder / "z1.ome.tif", changed, description=xml, metadata=None)
    assert again(first, tmp_path / "o", (), z=1)[0].resumed == []


# A full disk


def test_a_full_disk_at_the_tables_keeps_what_failed(pictures, tmp_path, monkeypatch):
    (pictures / "bad.tif").write_text("no picture")

    def full(path, *_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(
            runner, "write_csv", lambda path, table: full(path) if path.name == "counts.csv" else table.to_csv(path)
        )
        result = run("segment", pictures, "--model", "otsu", "--out", tmp_path / "out", code=1)
    assert "bad.tif" in result.stderr and "its tables and report could not be written (No space left" in result.stderr
    assert "make room" in result.stderr and "call the same again" in result.stderr
    result = run("segment", pictures, "--model", "otsu", "--out", tmp_path / "out", code=1)
    assert "2 finished before" in result.stdout and len(pd.read_csv(tmp_path / "out/counts.csv")) == 2


# Threads, equal bytes, quiet starts


def test_runs_say_how_many_threads_they_had(out):
    import torch

    assert json.loads((out / "run.json").read_text())["threads"] == torch.get_num_threads()


def test_equal_results_are_equal_bytes(tmp_path):
    labels = simulate_nuclei((96, 128), 8, seed=0)[1]
    made = [write_labels(tmp_path / f"{n}/x.ome.tif", labels, 0.5).read_bytes() for n in range(2)]
    assert made[0] == made[1]
    assert write_labels(tmp_path / "2/x.ome.tif", labels, 0.6).read_bytes() != made[0]
    labels = labels.copy()
    labels[0, 0] = 1 - labels[0, 0]
    write_labels(tmp_path / "3/x.ome.tif", labels, 0.5)
    names = [tifffile.TiffFile(tmp_path / f"{n}/x.ome.tif").ome_metadata.split('UUID="')[1][:45] for n in (0, 1, 3)]
    assert names[0] == names[1] != names[2]


def test_stars_start_quietly(pictures, tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TF_")}
    words = [*START, "segment", pictures / "i0.tif", "--model", "stars", "--out", tmp_path / "out"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    noise = [line for line in done.stderr.splitlines() if not line.startswith(("warning: ", "segment: "))]
    assert (done.returncode, noise) == (0, []), done.stderr


@pytest.mark.parametrize("model", ["nuclei", "stars"])
def test_large_pictures_say_first_how_many_pieces_there_are(model, pictures, tmp_path):
    write_image(tmp_path / "large.tif", simulate_nuclei((300, 500), 30, seed=1)[0], "YX")
    pieces = ("--large-mpx", 0.1, "--tile", 384, "--overlap", 64)
    result = run("segment", tmp_path / "large.tif", "--model", model, "--out", tmp_path / "out", *pieces)
    first = result.stdout.splitlines()[0]
    assert first.startswith("1 large image, ") and " pieces of 384 x 384 px: about " in first
    assert first.endswith(" in the network")


def test_cells_in_one_file_are_replaced_unless_edited(tmp_path):
    walls = np.zeros((4, 48, 48), np.float32)
    walls[:, ::16], walls[:, :, ::16] = 1, 1
    write_image(tmp_path / "walls.tif", walls, "ZYX")
    words = ("graph", tmp_path / "walls.tif", "--out", tmp_path / "cells.ome.tif")
    run(*words)
    run(*words, "--beta", 0.4)
    labels = np.ones((4, 48, 48), np.uint16)
    labels[:2] = 2
    write_labels(tmp_path / "cells.ome.tif", labels)
    assert "cells.ome.tif was changed after it was written" in error_of(*words)
    assert (read_labels(tmp_path / "cells.ome.tif") == labels).all()
    run(*words, "--overwrite")
    made = read_labels(tmp_path / "cells.ome.tif")
    for n_bytes in (0, (tmp_path / "cells.ome.tif").stat().st_size // 2):
        os.truncate(tmp_path / "cells.ome.tif", n_bytes)  # as after a power cut
        run(*words)
        assert (read_labels(tmp_path / "cells.ome.tif") == made).all()
    write_labels(tmp_path / "mine.ome.tif", labels)
    assert "was not made by this command" in error_of(*words[:-1], tmp_path / "mine.ome.tif")
