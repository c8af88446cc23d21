"""The app for grids as a person uses it: a web page in a browser, driven by playwright."""

import os
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_app import (
    CHROMIUM,
    NAMES,
    download,
    quiet_page,
    set_number,
    upload,
    wait_for_line,
)

from cellseg_nb.apps.grid_widgets import GridSimulation, simulated_marks
from cellseg_nb.data.io import read_labels, write_image
from cellseg_nb.segment.grid import register_mask

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(NAMES)} is installed")
USUAL = {"Rotation, °": 5, "Marks missing, %": 20, "First rows gone": 0}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with quiet_page(tmp_path_factory.mktemp("voila"), "grid") as page:
        wait_for(page, "marks numbered")
        canvas(page).wait_for()
        page.wait_for_function("document.querySelector('canvas[role=img]').dataset.view")
        yield page


def canvas(page):
    return page.get_by_role("img", name="the marks of")


def wait_for(page, words: str) -> str:
    """Wait for the line in large letters to say something."""
    line = page.locator(f".widget-html:has(b):has-text({words!r})").first
    line.wait_for()
    return line.inner_text()


def pixels(page) -> str:
    """The picture on the screen, in short."""
    return page.evaluate("document.querySelector('canvas[role=img]').toDataURL()")


def change(page, act) -> None:
    """Do something, and wait until another picture is there."""
    before = pixels(page)
    act()
    page.wait_for_function("old => document.querySelector('canvas[role=img]').toDataURL() !== old", arg=before)


def set_text(page, name: str, value) -> None:
    field = page.get_by_role("textbox", name=name, exact=True)
    field.fill(str(value))
    field.press("Enter")


def click(page, y: float, x: float, **how) -> None:
    """Click a place of the picture; px."""
    left, top, zoom = map(float, canvas(page).get_attribute("data-view").split())
    canvas(page).click(position={"x": left + (x + 0.5) * zoom, "y": top + (y + 0.5) * zoom}, **how)


def simulated(**how) -> tuple[np.ndarray, np.ndarray]:
    return simulated_marks(GridSimulation(**how))


def centre(truth: np.ndarray, row: int, col: int) -> np.ndarray:
    """Where a mark is; y, x; px."""
    return np.argwhere(truth == (row - 1) * 24 + col).mean(axis=0)


def test_first_picture_without_code(page):
    assert page.title() == "Grids"
    _, truth = simulated()
    n = len(np.unique(truth)) - 1
    assert f"of {n} simulated marks {n} right, 0 wrong" in wait_for(page, "marks numbered")
    assert page.get_by_text("number 1 is the corner at the top left").count() == 1
    assert page.locator(".jp-InputArea-editor").count() == 0


def test_sliders_turn_and_drop_and_the_numbers_hold(page):
    change(page, lambda: set_number(page, "Rotation, °", -30))
    page.get_by_text("number 1 is the corner at the left").wait_for()
    change(page, lambda: set_number(page, "Marks missing, %", 60))
    _, truth = simulated(angle_deg=-30, missing_percent=60)
    n = len(np.unique(truth)) - 1
    wait_for(page, f"of {n} simulated marks {n} right, 0 wrong")
    if os.environ.get("CELLSEG_SCREENSHOT"):
        page.wait_for_timeout(500)
        page.screenshot(path=Path(os.environ["CELLSEG_SCREENSHOT"]))


def test_too_few_marks_are_refused(page):
    change(page, lambda: set_number(page, "Marks missing, %", 95))
    wait_for(page, "No numbers")
    assert "lie on no grid" in wait_for_line(page, "Refused")
    page.get_by_role("button", name="Save table").click()
    wait_for_line(page, "there is no numbering to save")
    for name, value in USUAL.items():
        set_number(page, name, value)
    wait_for(page, "marks numbered")


def test_an_anchor_tells_where_the_grid_begins(page):
    set_number(page, "First rows gone", 1)
    wait_for(page, "No numbers")
    wait_for_line(page, "16 rows and 24 columns")
    _, truth = simulated(gone_rows=1)
    n = len(np.unique(truth)) - 1
    click(page, *centre(truth, 5, 10))
    wait_for_line(page, "Type row and column of the mark that you clicked")
    set_text(page, "Anchor row", 5)
    set_text(page, "Anchor column", 10)
    wait_for(page, f"of {n} simulated marks {n} right, 0 wrong")
    set_text(page, "Anchor row", 6)
    wait_for_line(page, "the anchor does not fit")
    click(page, *centre(truth, 8, 3))  # elsewhere: the anchor moves
    wait_for_line(page, "Type row and column of the mark that you clicked")
    set_text(page, "Anchor row", 8)
    set_text(page, "Anchor column", 3)
    wait_for(page, f"of {n} simulated marks {n} right, 0 wrong")
    if os.environ.get("CELLSEG_SCREENSHOT"):
        page.wait_for_timeout(500)
        path = Path(os.environ["CELLSEG_SCREENSHOT"])
        page.screenshot(path=path.with_name(f"{path.stem}_anchor{path.suffix}"))
    click(page, *centre(truth, 8, 3), modifiers=["Shift"])
    wait_for(page, "No numbers")
    assert page.get_by_role("textbox", name="Anchor row").input_value() == ""


def test_the_size_is_estimated(page):
    set_text(page, "Rows", "")
    assert "0 right" in wait_for(page, "15 x 24, estimated")  # the second row is called the first
    set_number(page, "First rows gone", 0)
    assert "0 wrong" in wait_for(page, "16 x 24, estimated")
    set_text(page, "Rows", 17)
    wait_for_line(page, "Refused: 17 rows and 24 columns")
    set_text(page, "Rows", "many")
    wait_for_line(page, "rows")
    set_text(page, "Rows", 16)
    wait_for(page, "16 x 24, given")


def test_a_mask_is_opened_and_results_are_saved(page, tmp_path):
    mask, _ = simulated(angle_deg=20, missing_percent=50)
    upload(page, write_image(tmp_path / "sample.tif", np.uint8(mask), "YX"), "Open a mask file")
    wait_for(page, "16 x 24, estimated")
    found, numbers = register_mask(mask)
    table = download(page, "Save table")
    assert table.name == "sample_marks.csv"
    assert (pd.read_csv(BytesIO(table.read_bytes())).status == found.marks.status).all()
    assert (read_labels(download(page, "Save numbers")) == numbers).all()
    assert page.get_by_role("slider", name="Rotation").locator("visible=true").count() == 0


def test_wrong_files_are_named(page, tmp_path):
    notes = tmp_path / "notes.png"
    notes.write_text("Dear all")
    empty = write_image(tmp_path / "empty.tif", np.zeros((64, 64), np.uint8), "YX")
    colour = write_image(
        tmp_path / "colour.png", np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8), "YXC"
    )
    for path in (notes, empty, colour):
        upload(page, path, "Open a mask file")
        assert "\n" not in wait_for_line(page, path.name).strip()
        assert re.match(r"\d+ marks numbered", wait_for(page, "marks numbered"))
    page.get_by_role("combobox", name="Marks").select_option("simulated plate, 8 x 12")
    wait_for(page, "8 x 12, given")
