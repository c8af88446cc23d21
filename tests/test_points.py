"""`cellseg points`: from the files of annotators to a project, as a person uses it."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import test_cli

from cellseg_nb.data.count_samples import counting_samples
from cellseg_nb.data.io import write_image
from cellseg_nb.data.point_files import to_percent
from cellseg_nb.data.projects import read_quality, write_quality

SHAPE = (120, 160)

run, error_of = partial(test_cli.run, "points"), partial(test_cli.error_of, "points")


def task(number, name, **annotators):
    """A task of Label Studio: annotator → points (y, x) in px."""
    done = []
    for who, points in annotators.items():
        size = {"original_width": SHAPE[1], "original_height": SHAPE[0], "image_rotation": 0}
        items = [
            size | {"type": "keypointlabels", "value": {"x": x, "y": y, "keypointlabels": ["cell"]}}
            for y, x in to_percent(np.array(points, float), SHAPE).tolist()
        ]
        done.append({"completed_by": who, "result": items, "was_cancelled": False})
    return {"id": number, "data": {"image": f"/data/upload/2/0a1b2c3d-{name}"}, "annotations": done}


@pytest.fixture
def images(tmp_path):
    """Three pictures without content."""
    for name in ("one.png", "two.png", "three.tif"):
        write_image(tmp_path / "images" / name, np.zeros(SHAPE, np.uint8), "YX")
    return tmp_path / "images"


@pytest.fixture
def export(tmp_path):
    """Two people marked the first image, one found nothing in the second, nobody saw the third."""
    cells = np.random.default_rng(0).permutation(np.mgrid[10:110:20, 10:150:20].reshape(2, -1).T)
    tasks = [
        task(1, "one.png", anna=cells[:30], ben=cells[2:28] + 1),
        task(2, "two.png", anna=[]),
        task(3, "three.tif"),
    ]
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return path


def test_import_makes_a_project_that_keeps_what_was_entered(tmp_path, images, export):
    out = tmp_path / "project"
    printed = run("import", export, "--images", images, "--out", out).stdout
    assert "56 points in 2 images by 2 annotators" in printed
    assert {path.name for path in out.iterdir()} == {
        "points.csv",
        "annotators.json",
        "data_quality.csv",
        "images",
    }
    quality = read_quality(out / "data_quality.csv").set_index("image")
    assert quality["annotation_status"].to_dict() == {
        "one": "sparse",
        "two": "empty",
        "three": "MISSING",
    }
    quality.loc["one", ["annotation_status", "split"]] = "fully", "train"
    write_quality(out / "data_quality.csv", quality.reset_index())
    table = tmp_path / "more.csv"
    table.write_text("image,x,y,annotator\ntwo.png,5,6,ben\nthree.tif,150.5,3,ben\n")
    printed = run("import", table, "--images", images, "--out", out).stdout
    assert "kept as entered by hand: one is fully (the files say sparse)" in printed
    quality = read_quality(out / "data_quality.csv").set_index("image")
    assert quality["annotation_status"].to_dict() == {
        "one": "fully",
        "two": "CONFLICT",
        "three": "sparse",
    }
    samples = {one.name: one for one in counting_samples(out)}
    assert [samples[name].trains for name in ("one", "two", "three")] == [True, False, True]
    assert samples["one"].split == "train"
    assert len(samples["one"].points) == 26 and samples["one"].zones.any()
    np.testing.assert_allclose(samples["three"].points, [[3, 150.5]])


def test_a_later_import_leaves_other_images_alone(tmp_path, images, export):
    out, table = tmp_path / "project", tmp_path / "more.csv"
    run("import", export, "--images", images, "--out", out, "--status", "fully")
    table.write_text("image,x,y\nthree,5,6\n")
    assert "as entered by hand" not in run("import", table, "--images", images, "--out", out).stdout
    quality = read_quality(out / "data_quality.csv").set_index("image")["annotation_status"]
    assert quality.to_dict() == {"one": "fully", "two": "empty", "three": "sparse"}


def test_a_twin_of_an_image_is_an_error_and_changes_nothing(tmp_path, images, export):
    out, others = tmp_path / "project", tmp_path / "others"
    run("import", export, "--images", images, "--out", out)
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    for name in ("new.png", "one.tif"):
        write_image(others / name, np.zeros(SHAPE, np.uint8), "YX")
    (tmp_path / "more.csv").write_text("image,x,y\nnew,5,6\n")
    line = error_of("import", tmp_path / "more.csv", "--images", others, "--out", out)
    assert "one.tif and " in line and "would have the same name" in line
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before


def test_files_named_after_their_annotators(tmp_path, images, export):
    """Everybody is number 1 on a computer of their own; the name of the file says who it was."""
    cells = np.mgrid[10:110:20, 10:150:20].reshape(2, -1).T
    files = []
    for who, points in {"ANNA": cells, "BEN": cells[3:] + 1}.items():
        files.append(tmp_path / f"plate 3..{who}.json")
        files[-1].write_text(json.dumps([task(1, "one.png", **{"1": points})]), encoding="utf-8")
    rois = tmp_path / "two..EVA.csv"
    rois.write_text("image,x,y\ntwo,5,6\n")
    out = tmp_path / "project"
    run("import", *files, rois, "--images", images, "--out", out)
    looked = json.loads((out / "annotators.json").read_text())
    assert looked == {"ANNA": {"one": 35}, "BEN": {"one": 32}, "EVA": {"two": 1}}
    run("agree", out)
    people = pd.read_csv(out / "agreement" / "annotators.csv").set_index("annotator")
    np.testing.assert_allclose(people.loc[["ANNA", "BEN"], "miss_rate"], [0, 3 / 35], atol=1e-5)
    both = tmp_path / "plate 3..EVA.json"  # a file that names several people keeps their names
    both.write_text(export.read_text())
    run("import", both, "--images", images, "--out", tmp_path / "second")
    looked = json.loads((tmp_path / "second" / "annotators.json").read_text())
    assert list(looked) == ["anna", "ben"]


def test_other_spellings_of_a_status(tmp_path, images, export):
    """Tables of CellNet say NISSING; what is written is MISSING."""
    out = tmp_path / "project"
    run("import", export, "--images", images, "--out", out)
    path = out / "data_quality.csv"
    path.write_text(path.read_text().replace("two,empty", "two,NISSING"))
    printed = run("import", export, "--images", images, "--out", out).stdout
    assert "kept as entered by hand: two is MISSING" in printed
    status = pd.read_csv(path).set_index("image")["annotation_status"]
    assert status["two"] == "MISSING" and "NISSING" not in path.read_text()
    path.write_text(path.read_text().replace("two,MISSING", "two,MISING"))
    assert "annotation_status is 'MISING'; it must be" in error_of("import", export, "--images", images, "--out", out)


def test_agree_says_who_misses_what(tmp_path, images, export):
    out = tmp_path / "project"
    run("import", export, "--images", images, "--out", out)
    printed = run("agree", out, "--radius", 6).stdout
    people = pd.read_csv(out / "agreement" / "annotators.csv").set_index("annotator")
    np.testing.assert_allclose(people["miss_rate"], [0, 4 / 30], atol=1e-5)
    np.testing.assert_allclose(people["f1"], 2 * 26 / 56, atol=1e-5)
    assert people["double_rate"].tolist() == [0, 0]
    assert "miss_rate" in printed and "anna" in printed
    assert (out / "agreement" / "zones" / "one.png").exists()
    assert "radius_px must be a positive number" in error_of("agree", out, "--radius", 0)
    table = tmp_path / "alone.csv"
    table.write_text("image,x,y\none,5,6\n")
    run("import", table, "--images", images, "--out", tmp_path / "alone")
    assert "no image was marked by two annotators" in error_of("agree", tmp_path / "alone")
    assert "there is no file" in error_of("agree", images)


@pytest.mark.parametrize(
    "name, text, options, message",
    [
        ("a.json", "[{", [], "is no whole JSON file"),
        (
            "a.json",
            json.dumps([task(4, "four.png", eva=[[1, 1]])]),
            [],
            "image four (task 4) is not",
        ),
        (
            "a.json",
            json.dumps([task(4, "one.png", eva=[[1, 200]])]),
            [],
            "lies outside: x 200, y 1",
        ),
        (
            "a.json",
            json.dumps([task(4, "one.png", eva=[[1, 1]])]),
            ["--label", "nucleus", "--label", "debris"],
            "task 4 has the label 'cell'; the known ones are nucleus, debris",
        ),
        ("a.json", json.dumps([task(4, "one.png", eva=[])]), [], "there is no point in"),
        ("a.csv", "image,x,y\none,1,two\n", [], "row 2: y is 'two'"),
        ("a.csv", "image,x,y\n", [], "has no rows, so no points"),
        ("a.xlsx", "one", [], "points are read from Label Studio"),
        (
            "a.csv",
            "image,x,y\none,1,2\n",
            ["--status", "half"],
            "status is 'half'; it must be one of",
        ),
        (
            "a.csv",
            "image,x,y\none,1,2\n",
            ["--status", "MISSING"],
            "status is 'MISSING'; it must be one of sparse, fully",
        ),
        ("a.csv", "image,x,y\np1/one,1,2\np2/one,1,2\n", [], "p1/one and p2/one would have"),
    ],
    ids="broken absent outside label zero number rows format status word folders".split(),
)
def test_import_explains_what_is_wrong(tmp_path, images, name, text, options, message):
    path, out = tmp_path / name, tmp_path / "project"
    path.write_text(text, encoding="utf-8")
    line = error_of("import", path, "--images", images, "--out", out, *options)
    assert line.startswith("error: ") and message in line
    assert not out.exists()


@pytest.mark.needs_data("label_studio", "counting/phase_contrast")
@pytest.mark.parametrize("name", ["keypoints_export.json", "keypoints_export_min.json"])
def test_examples_of_label_studio(tmp_path, name):
    data = Path(os.environ["CELLSEG_DATA"])
    images = data / "counting" / "phase_contrast" / "images"
    arguments = "import", data / "label_studio" / name, "--images", images, "--out", tmp_path
    assert "image empty (task 2) is not among the images" in error_of(*arguments)
    assert "12 points in 1 image by 1 annotator" in run(*arguments, "--skip-absent").stdout
    truth = {one.name: one for one in counting_samples(data / "counting" / "phase_contrast")}
    found = {one.name: one for one in counting_samples(tmp_path)}
    np.testing.assert_allclose(found["phase_b"].points, truth["phase_b"].points, atol=1e-6)
    assert [found[name].annotation_status for name in ("phase_a", "phase_b")] == [
        "MISSING",
        "sparse",
    ]
