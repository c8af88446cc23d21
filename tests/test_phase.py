"""`cellseg data simulate phase` and `cellseg points foreground`, as a person uses them."""

import numpy as np
import pytest
from test_cli import error_of, run

from cellseg_nb.data import foreground
from cellseg_nb.data.count_samples import counting_samples
from cellseg_nb.data.io import read_image, write_image
from cellseg_nb.data.phase import simulate_phase_contrast, write_phase_contrast
from cellseg_nb.data.projects import read_quality, write_quality


@pytest.fixture
def project(tmp_path):
    """Three small pictures with true points and masks, all reviewed."""
    write_phase_contrast(tmp_path, n=3, shape=(96, 96), n_cells=8)
    return tmp_path


def mark(project, image, status):
    """Enter the status of a mask in data_quality.csv by hand; image None = of all."""
    path = project / "data_quality.csv"
    quality = read_quality(path)
    chosen = quality["image"].eq(image) if image else slice(None)
    quality.loc[chosen, "fgmask_status"] = status
    write_quality(path, quality)


def test_what_is_simulated_is_read_back(tmp_path):
    arguments = "--images", 2, "--size", 96, "--cells", 7, "--seed", 5, "--out", tmp_path
    assert "2 images with points" in run("data", "simulate", "phase", *arguments).stdout
    samples = counting_samples(tmp_path)
    assert [one.name for one in samples] == ["phase_005", "phase_006"]
    for sample, seed in zip(samples, (5, 6)):
        image, points, foreground = simulate_phase_contrast((96, 96), 7, seed=seed)
        np.testing.assert_array_equal(sample.image(), image)
        np.testing.assert_array_equal(sample.mask(), foreground)
        np.testing.assert_allclose(sample.points, points, atol=0.006)
        assert (sample.annotation_status, sample.fgmask_status) == ("fully", "ok")
        assert sample.trains and sample.zones is None


def test_overlooked_cells_make_an_image_sparse(tmp_path):
    people = {"ada": {"miss_rate": 0, "double_rate": 0}, "ben": {"miss_rate": 0.5}}
    write_phase_contrast(tmp_path, n=2, shape=(96, 96), n_cells=12, annotators=people)
    samples = counting_samples(tmp_path)
    assert {one.annotation_status for one in samples} == {"sparse"}
    assert all(len(one.points) < 12 and one.zones.any() for one in samples)
    careful = {"ada": people["ada"]}
    write_phase_contrast(tmp_path, n=2, shape=(96, 96), n_cells=12, annotators=careful)
    samples = counting_samples(tmp_path)
    assert {one.annotation_status for one in samples} == {"fully"}
    assert all(one.zones is None for one in samples)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["plants"], "nothing called 'plants' can be simulated; there is: nuclei, phase"),
        (["phase", "--size", "4"], "--size of an image is one number from 16 on, not '4'"),
        (["phase", "--size", "9,9"], "one number from 16 on"),
    ],
    ids="kind small list".split(),
)
def test_simulate_explains_what_is_wrong(tmp_path, arguments, message):
    line = error_of("data", "simulate", *arguments, "--out", tmp_path / "new")
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "new").exists()


def test_a_project_of_somebody_is_not_overwritten(tmp_path):
    write_image(tmp_path / "images" / "well.png", np.zeros((32, 32), np.uint8), "YX")
    (tmp_path / "points.csv").write_text("image,x,y\nwell,1,2\n")
    line = error_of("data", "simulate", "phase", "--size", 96, "--out", tmp_path)
    assert "holds other images, such as well.png" in line
    assert (tmp_path / "points.csv").read_text() == "image,x,y\nwell,1,2\n"


def test_masks_of_a_person_stay(project):
    masks = {number: project / "masks" / f"phase_00{number}.png" for number in range(3)}
    truth = {number: path.read_bytes() for number, path in masks.items()}
    assert "0 masks to look at, 3 kept as you left" in run("points", "foreground", project).stdout
    mark(project, None, "unchecked")  # not reviewed, but made elsewhere
    assert "0 masks to look at, 3 kept" in run("points", "foreground", project).stdout
    assert {number: path.read_bytes() for number, path in masks.items()} == truth

    assert "3 masks to look at:" in run("points", "foreground", project, "--overwrite").stdout
    assert "3 masks to look at:" in run("points", "foreground", project).stdout  # as proposed
    mark(project, "phase_000", "BAD")
    mark(project, "phase_001", "ok")
    write_image(masks[2], np.full((96, 96), 255, np.uint8), "YX")
    left = {number: path.read_bytes() for number, path in masks.items()}
    assert "0 masks to look at, 3 kept" in run("points", "foreground", project).stdout
    assert {number: path.read_bytes() for number, path in masks.items()} == left
    status = read_quality(project / "data_quality.csv")["fgmask_status"].tolist()
    assert status == ["BAD", "ok", "unchecked"]

    run("points", "foreground", project, "--overwrite")
    assert read_image(masks[2]).pixels.min() == 0
    assert set(read_quality(project / "data_quality.csv")["fgmask_status"]) == {"unchecked"}


def test_a_mask_of_another_format_is_the_mask(project):
    (project / "masks" / "phase_001.png").unlink()
    painted = project / "masks" / "phase_001.tif"
    write_image(painted, np.full((96, 96), 255, np.uint8), "YX")
    run("points", "foreground", project)
    assert counting_samples(project)[1].mask_path == painted
    run("points", "foreground", project, "--overwrite")
    assert not painted.exists() and counting_samples(project)[1].mask_path.suffix == ".png"


def test_a_broken_image_does_not_stop_the_others(project):
    (project / "images" / "broken.png").write_text("no picture")
    result = run("points", "foreground", project, "--overwrite", code=1)
    assert "3 masks to look at" in result.stdout and "broken.png" in result.stderr


def test_channels_are_chosen_and_each_file_says_what_is_wrong(project):
    for path in (project / "images").iterdir():
        pixels = read_image(path).pixels
        path.unlink()
        write_image(path.with_suffix(".tif"), np.stack([pixels * 0, pixels]), "CYX")
    result = run("points", "foreground", project, "--overwrite", code=2)
    assert result.stderr.count("has 2 channels; choose one") == 3
    run("points", "foreground", project, "--overwrite", "--channel", 1)
    assert all(0 < read_image(one).pixels.mean() < 255 for one in project.glob("masks/*"))
    truth = read_image(project / "masks" / "phase_000.png").pixels > 0
    strokes = np.where(truth, 2, 1).astype(np.uint8)
    write_image(project / "scribbles" / "phase_000.png", strokes, "YX")
    run("points", "foreground", project, "--method", "classifier", "--channel", 1)
    assert all(0 < read_image(one).pixels.mean() < 255 for one in project.glob("masks/*"))


def test_what_was_proposed_before_an_interruption_is_a_proposal(project, monkeypatch):
    find, seen = foreground.texture_foreground, []

    def interrupted(image, limits):
        seen.append(image)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return find(image, limits)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(foreground, "texture_foreground", interrupted)
        foreground.write_foreground_masks(project, overwrite=True)
    quality = read_quality(project / "data_quality.csv")["fgmask_status"].tolist()
    assert quality == ["unchecked", "unchecked", "ok"]
    assert "2 masks to look at, 1 kept" in run("points", "foreground", project).stdout


def test_foreground_explains_what_is_wrong(project, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    assert "no file or folder" in error_of("points", "foreground", empty)
    assert "no file or folder" in error_of("points", "foreground", project / "nowhere")
    magic = error_of("points", "foreground", project, "--method", "magic")
    assert "texture, classifier, not 'magic'" in magic
    needs = error_of("points", "foreground", project, "--method", "classifier")
    assert "the classifier needs scribbles" in needs and "1 (background)" in needs
    needless = "--method", "texture", "--scribbles", project / "images"
    assert "texture needs none" in error_of("points", "foreground", project, *needless)
    for name, strokes, message in (
        ("phase_000", np.full((96, 96), 7), "hold the value 7"),
        ("phase_000", np.ones((9, 9)), "have the shape (9, 9)"),
        ("phase_000", np.ones((96, 96)), "and 0 of foreground (2); at least 20"),
        ("other", np.ones((96, 96)), "there is no image of this name"),
    ):
        folder = tmp_path_factory.mktemp("scribbles")
        write_image(folder / f"{name}.png", strokes.astype(np.uint8), "YX")
        assert message in error_of("points", "foreground", project, "--scribbles", folder)
    (project / "data_quality.csv").write_text("image,annotation_status,fgmask_status\na,fully,so\n")
    assert "fgmask_status is 'so'" in error_of("points", "foreground", project)
    (project / "proposed_masks.json").write_text("{")
    assert "is damaged" in error_of("points", "foreground", project)
