"""A task of a few lines has all that tasks have: a command, resumption, tables, a report, an app."""

import numpy as np
import pytest
from typer.testing import CliRunner

from cellseg_nb.data.io import write_image
from cellseg_nb.run.cli import app
from cellseg_nb.run.registry import find_task, register, task_lines
from cellseg_nb.run.task import Result, Task
from cellseg_nb.settings import Settings, setting


class SpotSettings(Settings):
    """How bright spots are found."""

    threshold: float = setting(
        0.5,
        "Part of the brightest from which on a pixel is spot.",
        gt=0,
        lt=1,
        metavar="P",
        slider=(0.1, 0.9, 0.1),
    )
    least_px: int = setting(1, "Smallest spot.", ge=1, metavar="PX")


@register
class Spots(Task):
    """Count bright spots in images."""

    name, found, Settings, tables = "spots", "spot", SpotSettings, ("places",)
    default_out = "cellseg_out/spots"

    def process(self, item):
        import pandas as pd
        from skimage.measure import label, regionprops_table

        pixels = item.read().pixels.astype(float)
        if pixels.ndim != 2:
            raise ValueError(f"spots are counted in (Y, X), not in {pixels.shape}")
        labels = label(pixels > self.settings.threshold * pixels.max())
        measured = regionprops_table(labels, properties=("label", "area", "centroid"))
        places = pd.DataFrame(measured).query("area >= @self.settings.least_px")
        labels = np.where(np.isin(labels, places["label"]), labels, 0).astype(np.uint16)
        gray = np.uint8(255 * pixels / pixels.max())
        return Result(
            row={"count": len(places), "largest_px": int(places["area"].max())},
            tables={"places": places},
            files={f"{item.name}_spots.npy": lambda path: np.save(path, labels)},
            labels=labels,
            picture=np.repeat(gray[..., None], 3, -1),
        )


# All above is the task. Nothing else was touched.


@pytest.fixture
def folder(tmp_path):
    field = np.zeros((40, 60), np.uint16)
    field[10:13, 10:13] = field[30:33, 40:44] = 900
    field[20, 20] = 500
    for name in ("a", "b"):
        write_image(tmp_path / "in" / f"{name}.tif", field, "YX")
    (tmp_path / "in" / "cut.tif").write_bytes(b"II*\0 nothing")
    return tmp_path


def cellseg(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_it_is_a_command_with_its_options():
    assert task_lines()["spots"] == "Count bright spots in images." and find_task("spots") is Spots
    assert "Count bright spots in images." in cellseg("--help").output
    text = " ".join(cellseg("spots", "--help").output.split())
    for words in (
        "--threshold P Part of the brightest from which on a pixel is spot. [default: 0.5]",
        "--least PX Smallest spot. [default: 1]",
        "--out DIR Folder for the results. [default: cellseg_out/spots]",
        "--overwrite",
    ):
        assert words in text, text


def test_it_goes_on_past_failures_and_where_it_stopped(folder):
    run = ("spots", folder / "in", "--out", folder / "out")
    done = cellseg(*run)
    assert done.exit_code == 1 and "6 spots in 2 images" in done.output
    assert f"error: {folder}/in/cut.tif: " in done.output
    assert (folder / "out" / "counts.csv").read_text().startswith("image,count,largest_px,file\na,3,12,")
    assert len((folder / "out" / "places.csv").read_text().splitlines()) == 7
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "6 spots in 2 images" in page and page.count('<figure class="card">') == 2
    assert "Not done: 1" in page
    written = (folder / "out" / "a_spots.npy").stat().st_mtime_ns
    assert "6 spots in 2 images, 2 finished before" in cellseg(*run).output
    assert (folder / "out" / "a_spots.npy").stat().st_mtime_ns == written
    assert "4 spots in 2 images\n" in cellseg(*run, "--threshold", 0.6).output
    (folder / "out" / "b_spots.npy").unlink()
    assert "4 spots in 2 images, 1 finished before" in cellseg(*run, "--threshold", 0.6).output


def test_wrong_settings_and_foreign_results_are_one_line(folder):
    wrong = cellseg("spots", folder / "in", "--least", 0)
    assert wrong.exit_code == 2
    assert "error: --least: Input should be greater than or equal to 1 (it is 0)" in wrong.output
    (folder / "mine").mkdir()
    (folder / "mine" / "counts.csv").write_text("my counts")
    foreign = cellseg("spots", folder / "in", "--out", folder / "mine")
    assert foreign.exit_code == 2 and "counts.csv was not made by this command" in foreign.output
    assert (folder / "mine" / "counts.csv").read_text() == "my counts"
