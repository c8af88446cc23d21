"""Odd files, names and sizes: right or refused with a reason, and the batch goes on."""

import csv
import json
import os
import sys

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image as Picture
from test_formats import ome_set
from typer.testing import CliRunner

from cellseg_nb.core import cell_values, plain_text
from cellseg_nb.data.io import find_images, read_image, read_labels, write_image
from cellseg_nb.data.projects import import_points
from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.run.cli import app

posix = pytest.mark.skipif(sys.platform == "win32", reason="names are bytes on POSIX only")


def run(*arguments, code=0):
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == code, done.output
    return done


def nuclei(seed, n=6, shape=(96, 112)):
    image, _ = simulate_nuclei(shape, n_nuclei=n, seed=seed)
    return (image / image.max() * 60_000).astype(np.uint16)


def counts(out):
    return cell_values(pd.read_csv(out / "counts.csv", keep_default_na=False))


# Files of one image


def test_a_folder_of_a_set_counts_each_image_once(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    stack = np.stack([nuclei(seed) for seed in (1, 2, 3)])
    names = [f"well_C{number}.ome.tif" for number in range(3)]
    ome_set(folder, names, stack, "C")
    write_image(folder / "z_alone.tif", stack[1], "YX")
    done = run("segment", folder, "--channel", "0", "--model", "otsu", "--out", out)
    assert "well_C1.ome.tif, well_C2.ome.tif: a part of an image" in done.stderr
    assert counts(out)["image"].tolist() == ["well_C0", "z_alone"]
    # from any of its files, alone and named one by one
    run("segment", folder / names[1], folder / names[2], "--channel", "2", "--model", "otsu", "--out", out / "b")
    run("segment", folder / "z_alone.tif", "--model", "otsu", "--out", out / "c")
    assert counts(out / "b")["image"].tolist() == ["well_C1"]
    assert len(counts(out)) == 2
    write_image(tmp_path / "third.tif", stack[2], "YX")
    run("segment", tmp_path / "third.tif", "--model", "otsu", "--out", out / "d")
    expected = read_labels(out / "d" / "third_labels.tif")
    np.testing.assert_array_equal(read_labels(out / "b" / "well_C1_labels.tif"), expected)


# What is stored otherwise than it is shown


def test_points_stay_on_a_turned_photo(tmp_path):
    """A viewer shows the photo turned, and Label Studio states percent of what it shows."""
    pixels = np.zeros((60, 100), np.uint8)
    pixels[10:13, 70:73] = 255  # as stored; shown at row 70..72 and column 47..49 of (100, 60)
    (tmp_path / "images").mkdir()
    exif = Picture.Exif()
    exif[0x0112] = 6
    Picture.fromarray(pixels).save(tmp_path / "images" / "photo.png", exif=exif)
    x, y = 100 * 48.5 / 60, 100 * 71.5 / 100
    item = {"type": "keypointlabels", "original_width": 60, "original_height": 100, "image_rotation": 0}
    item["value"] = {"x": x, "y": y, "width": 1, "keypointlabels": ["cell"]}
    task = {"id": 1, "data": {"image": "photo.png"}, "annotations": [{"id": 1, "completed_by": 1, "result": [item]}]}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    with pytest.warns(UserWarning, match="photo.png: turned as its orientation tag says"):
        made = import_points(tmp_path / "export.json", tmp_path / "images", tmp_path / "project")
    (point,) = made.annotations.points[["y", "x"]].to_numpy()
    np.testing.assert_allclose(point, (71, 48), atol=0.01)
    with pytest.warns(UserWarning, match="turned"):
        image = read_image(tmp_path / "images" / "photo.png").pixels
    assert image.shape == (100, 60) and image[71, 48] == 255 and image.sum() == 9 * 255


def test_white_zero_and_turned_photos_are_said_once(tmp_path):
    gray = (nuclei(4) // 257).astype(np.uint8)
    for number in range(5):
        tifffile.imwrite(tmp_path / f"w{number}.tif", 255 - gray, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "z.tif", gray)
    done = run("segment", tmp_path, "--model", "otsu", "--out", tmp_path / "out")
    assert done.stderr.count("0 is white in it") == 1 and "w0.tif, w1.tif, w2.tif and 2 more" in done.stderr
    assert counts(tmp_path / "out")["count"].nunique() == 1


@pytest.mark.parametrize("options", [[], ["--large-mpx", "0.001"]], ids=["whole", "pieces"])
def test_pixels_without_a_value_are_background_on_request(tmp_path, options):
    image = nuclei(5, n=8, shape=(160, 160)).astype(np.float32)
    framed = np.full((200, 200), np.nan, np.float32)
    framed[20:180, 20:180] = image
    framed[tuple(20 + np.argwhere(image == image[40:120, 40:120].min())[0])] = np.inf
    write_image(tmp_path / "framed.tif", framed, "YX")
    done = run("segment", tmp_path / "framed.tif", "--out", tmp_path / "a", *options, code=2)
    assert "--nan-as-background" in done.stderr
    run("segment", tmp_path / "framed.tif", "--nan-as-background", "--out", tmp_path / "b", *options)
    (path,) = (tmp_path / "b").glob("framed_labels*")
    labels = read_labels(path)
    write_image(tmp_path / "plain.tif", image, "YX")
    run("segment", tmp_path / "plain.tif", "--out", tmp_path / "c")
    expected = read_labels(tmp_path / "c" / "plain_labels.tif")
    inside = (slice(10, -10),) * 2  # away from the frame
    same = (labels[20:180, 20:180] > 0) == (expected > 0)
    assert same[inside].mean() > 0.99 and abs(int(labels.max()) - int(expected.max())) <= 1


# Names


@posix
def test_names_that_are_no_text_lose_no_table(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    names = [b"Pr\xe4parat.tif", b"=cmd|calc!A1.tif", b"-rf.tif", b"@x.tif", "ü 漢字.tif".encode(), b"new\nline.tif"]
    names = [os.fsdecode(name) for name in names]
    for number, name in enumerate(names):
        write_image(folder / name, nuclei(number), "YX")
    done = run("segment", folder, "--model", "otsu", "--out", out)
    assert "Pr%E4parat.tif: the name of the file is not UTF-8" in done.stderr
    with open(out / "counts.csv", newline="", encoding="utf-8") as file:
        stored = {row["image"] for row in csv.DictReader(file)}
    assert stored == {"Pr%E4parat", "'=cmd|calc!A1", "'-rf", "'@x", "ü 漢字", "new\nline"}
    assert set(counts(out)["image"]) == {plain_text(name).removesuffix(".tif") for name in names}
    assert {"objects.csv", "run.json", "report.html", "Pr%E4parat_labels.tif"} <= set(os.listdir(out))
    assert len(json.loads((out / "run.json").read_text(encoding="utf-8"))["inputs"]) == 6
    done = run("segment", folder, "--model", "otsu", "--out", out)  # and it is known again
    assert "6 finished before" in done.stdout


@posix
def test_what_is_no_file_is_named_and_waited_for_by_nobody(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    (folder / "folder.tif").mkdir(parents=True)
    write_image(folder / "good.tif", nuclei(1), "YX")
    os.mkfifo(folder / "pipe.tif")
    for link, target in {"a": "b.tif", "b": "a.tif", "gone": "/nonexistent/x.tif"}.items():
        (folder / f"{link}.tif").symlink_to(target)
    done = run("segment", folder, "--model", "otsu", "--out", out, code=1)
    for name in ("pipe", "a", "b", "gone"):
        assert f"error: {folder / name}.tif: is a " in done.stderr
    assert "folder.tif is a folder and no image" in done.stderr
    assert counts(out)["image"].tolist() == ["good"]
    assert [one.name for one in find_images(folder / "good.tif")] == ["good.tif"]


# Sizes


def test_sizes_that_no_microscope_has_are_unknown(tmp_path):
    resolution = dict(imagej=True, resolution=(2, 2), metadata={"unit": "cm"})
    tifffile.imwrite(tmp_path / "cm.tif", nuclei(1), **resolution)
    done = run("segment", tmp_path / "cm.tif", "--model", "otsu", "--out", tmp_path / "a")
    assert "cm.tif: states a pixel of 5,000 µm" in done.stderr and "--pixel-size" in done.stderr
    assert counts(tmp_path / "a")["pixel_size_y_um"].tolist() == [""]
    run("segment", tmp_path / "cm.tif", "--pixel-size", "0.5", "--model", "otsu", "--out", tmp_path / "b")
    assert counts(tmp_path / "b")["pixel_size_y_um"].tolist() == [0.5]


@pytest.mark.parametrize("dtype, offset", [(np.uint64, 2**60), (np.int64, -(2**60)), (np.float64, 1e12)])
@pytest.mark.parametrize("options", [[], ["--diameter", "30"], ["--large-mpx", "0.001"], ["--model", "otsu"]], ids=str)
def test_large_numbers_keep_their_differences(tmp_path, dtype, offset, options):
    small = nuclei(7) // 16
    write_image(tmp_path / "small.tif", small, "YX")
    tifffile.imwrite(tmp_path / "large.tif", np.add(small, offset, dtype=object).astype(dtype))
    run("segment", tmp_path / "small.tif", tmp_path / "large.tif", "--out", tmp_path / "out", *options)
    (n_small, n_large) = counts(tmp_path / "out")["count"]
    assert n_small == n_large > 0
