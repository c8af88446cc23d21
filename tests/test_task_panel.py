"""An app for any task: controls from its settings, an upload, its picture, numbers, warnings and files."""

import io
from datetime import datetime
from typing import Literal

import numpy as np
import pandas as pd
import pytest
from ipywidgets import Accordion, Checkbox, Dropdown, HBox, Text

from cellseg_nb.apps.scaffold import TaskPanel, field_of, file_bytes
from cellseg_nb.data.io import Image, read_labels, write_image, write_labels
from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.run.registry import register
from cellseg_nb.run.task import Result, Task
from cellseg_nb.segment.image import SegmentSettings, segment_image
from cellseg_nb.settings import Settings, setting


class BrightSettings(Settings):
    """What is bright."""

    threshold: float = setting(0.5, "Part of the range.", slider=(0.1, 0.9, 0.1), gt=0, lt=1)
    least_px: int | None = setting(None, "Smallest.", usual="any", slider=(0, 50, 1), ge=0)
    side: Literal["bright", "dark"] = setting("bright", "Which side of the threshold.")
    invert: bool = setting(False, "Turn the picture over first.")
    pixel_size_um: float | tuple[float, float] | None = setting(None, "Edges.", usual="the file's")
    more: dict[str, float] = setting({}, "Has no control.")
    device: str = setting("auto", "Where to compute.")


@register
class Bright(Task):
    """Find bright spots."""

    name, found, Settings = "bright", "spot", BrightSettings
    loaded = 0

    def load(self, watch):
        type(self).loaded += self.model is None
        self.model = "loaded"

    def process(self, item):
        from skimage.measure import label

        pixels = item.read().pixels.astype(float)
        pixels = -pixels if self.settings.invert else pixels
        limit = pixels.min() + self.settings.threshold * np.ptp(pixels)
        mask = pixels > limit if self.settings.side == "bright" else pixels <= limit
        labels = label(mask).astype(np.uint16)
        areas = np.bincount(labels.ravel())[1:]
        areas = areas[areas >= (self.settings.least_px or 0)]
        if not len(areas):
            raise ValueError(f"{item.name}: nothing is <large>")
        row = {"count": len(areas), "mean_px": areas.mean(), "share": mask.mean(), "note": "a<b"}
        return Result(
            row=row,
            tables={"spots": pd.DataFrame({"area_px": areas})},
            labels=labels,
            picture=np.repeat((255 * mask[..., None]).astype(np.uint8), 3, axis=2),
            unlike=["it is <dark>", "it is small"] if pixels.max() < 50 else [],
        )


IMAGE = np.zeros((40, 60), np.uint16)
IMAGE[5:10, 5:10], IMAGE[20:23, 30:50] = 100, 200


@pytest.fixture
def panel() -> TaskPanel:
    return TaskPanel("bright", IMAGE)


def upload(panel: TaskPanel, name: str, content: bytes) -> None:
    """Do what the browser does."""
    facts = dict(type="", size=len(content), last_modified=datetime.now())
    panel.upload.value = ({"name": name, "content": memoryview(content), **facts},)


def test_controls_are_the_settings(panel):
    kinds = {name: type(control) for name, control in panel.controls.items()}
    assert kinds == {
        "threshold": HBox,
        "least_px": HBox,
        "side": Dropdown,
        "invert": Checkbox,
        "pixel_size_um": Text,
    }  # the device changes no result, and a table of numbers is not for a page
    assert panel.settings == BrightSettings()
    slider, field = panel.controls["threshold"].children
    assert (slider.min, slider.max, slider.step, slider.tooltip) == (0.1, 0.9, 0.1, "Part of the range.")
    assert panel.controls["least_px"].children[0].description == "Least, px"
    assert field_of(panel.controls["least_px"]).placeholder == "any"
    left = panel.children[0].children[0]
    assert isinstance(left.children[-2], Accordion)  # what is typed lies in a drawer
    chosen = dict(threshold=0.3, device="cpu", more={"a": 1})
    assert TaskPanel("bright", IMAGE, **chosen).settings == BrightSettings(**chosen)


def test_moving_a_control_does_the_task_again(panel):
    assert "1 spot" in panel.count.value and panel.result.row["count"] == 1
    field_of(panel.controls["threshold"]).value = 0.3
    assert "2 spots" in panel.count.value
    panel.controls["least_px"].children[0].value = 30  # as its handle does
    assert panel.settings.least_px == 30 and panel.result.row["count"] == 1
    panel.controls["side"].value = "dark"
    assert panel.result.row["count"] == 1 and panel.labels[0, 0] == 1
    assert bytes(panel.screen.value[:2]) == b"\xff\xd8"
    assert ">mean_px</th>" in panel.row.value and "a&lt;b" in panel.row.value


def test_a_model_is_loaded_once():
    before = Bright.loaded
    panel = TaskPanel(Bright, IMAGE)
    panel.controls["invert"].value = True
    assert Bright.loaded == before + 1


def test_what_goes_wrong_is_one_line_and_leaves_nothing_to_save(panel):
    panel.controls["least_px"].children[1].value = "900"
    assert "image: nothing is &lt;large&gt;" in panel.status.value
    assert (panel.result, panel.count.value, panel.result_box.children) == (None, "", ())
    panel._save("spots.csv")
    assert "there is no result to save yet" in panel.status.value
    panel.controls["least_px"].children[1].value = "many"
    assert "least_px" in panel.status.value and "b3261e" in panel.status.value
    panel.controls["least_px"].children[1].value = ""
    assert panel.result.row["count"] == 1 and "b3261e" not in panel.status.value


def test_a_picture_unlike_the_training_is_said_in_red_above_it(panel):
    assert panel.warning.value == ""
    upload(panel, "dim.tif", file_bytes("dim.tif", lambda path: write_image(path, IMAGE // 10, "YX")))
    assert "it is &lt;dark&gt;; it is small" in panel.warning.value and "b3261e" in panel.warning.value
    right = panel.children[0].children[1].children
    assert right.index(panel.warning) < right.index(panel.screen)
    panel.source.value = next(iter(panel.examples))
    assert panel.warning.value == ""


def test_uploads(panel):
    content = file_bytes("a1.tif", lambda path: write_image(path, IMAGE.T, "YX", pixel_size_um=0.5))
    upload(panel, "a1.tif", content)
    assert (panel.source.value, panel.image.pixel_size_um) == ("a1.tif", (0.5, 0.5))
    assert panel.labels.shape == (60, 40)
    before = panel.result
    upload(panel, "notes.txt", b"Dear all")
    assert "notes.txt: .txt cannot be read" in panel.status.value and panel.result is before


def test_everything_can_be_saved(panel):
    field_of(panel.controls["threshold"]).value = 0.3
    assert list(panel.results) == ["counts.csv", "spots.csv", "labels.tif"]
    assert len(panel.result_box.children) == 3
    panel.results["spots.csv"].click()
    assert "image_spots.csv, 2 spots" in panel.status.value
    assert "image_spots.csv" in panel.script.outputs[0]["data"]["application/javascript"]
    spots = pd.read_csv(io.BytesIO(panel._content("spots.csv")))
    assert list(spots["area_px"]) == [25, 60]
    counts = pd.read_csv(io.BytesIO(panel._content("counts.csv")))
    assert counts.loc[0, "count"] == 2


def test_labels_are_those_of_the_task(panel, tmp_path):
    (tmp_path / "labels.tif").write_bytes(panel._content("labels.tif"))
    assert np.array_equal(read_labels(tmp_path / "labels.tif"), panel.labels)


def test_a_task_of_the_package_without_a_network(tmp_path):
    image, _ = simulate_nuclei((96, 128), n_nuclei=10, seed=3)
    examples = {"ten nuclei": lambda: Image(image, "YX", (0.5, 0.5))}
    panel = TaskPanel("segment", model="otsu", examples=examples)
    expected = segment_image(image, "otsu", SegmentSettings()).labels
    assert np.array_equal(panel.labels, expected) and f"{expected.max()} objects" in panel.count.value
    assert {"counts.csv", "objects.csv", "labels.tif", "overlay.png"} == set(panel.results)
    write_labels(tmp_path / "own.tif", expected, (0.5, 0.5))
    assert panel._content("labels.tif") == (tmp_path / "own.tif").read_bytes()
    field_of(panel.controls["min_area_px"]).value = "300"
    settings = SegmentSettings(min_area_px=300)
    assert np.array_equal(panel.labels, segment_image(image, "otsu", settings).labels)


def test_there_is_no_such_task():
    with pytest.raises(ValueError, match="there is no task 'nothing'"):
        TaskPanel("nothing")
