"""The app for stacks as a person uses it: a web page in a browser, driven by playwright."""

import re

import numpy as np
import pytest
from test_app import (
    CHROMIUM,
    NAMES,
    PATIENCE_S,
    browser_page,
    download,
    served,
    set_number,
    upload,
    wait_for_line,
)

from cellseg_nb.data.germline import simulate_germline, simulated_walls
from cellseg_nb.data.io import read_labels, write_image
from cellseg_nb.models.bundle import read_specification
from cellseg_nb.segment.graph import segment_boundaries

EDGES = (0.5, 0.2, 0.2)
VIEWS = ("Stack", "Walls", "Superpixels", "Cells")
FOUND = ".widget-html:has-text('cells · median volume')"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(NAMES)} is installed")


def open_app(page, address: str) -> None:
    """Open the app and wait until the first stack is segmented and drawn."""
    page.goto(address, wait_until="commit")
    page.locator(FOUND).wait_for()
    for name in VIEWS:
        page.get_by_role("img", name=f"{name} in the slice").wait_for()
    loaded = "[...document.querySelectorAll('img.widget-image')].every(one => one.naturalWidth > 0)"
    page.wait_for_function(loaded)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("playwright", reason="the Python package playwright is not installed")
    folder = tmp_path_factory.mktemp("voila")
    with served(folder, "cells3d") as address, browser_page() as page:
        open_app(page, address)
        yield page


def count(page) -> int:
    """How many cells the page says there are."""
    return int(page.locator(FOUND).inner_text().split()[0].replace(",", ""))


def wait_for_count(page, is_right) -> int:
    """Wait until the count is as it should be."""
    for _ in range(20 * PATIENCE_S):
        if page.locator(FOUND).count() == 1 and is_right(count(page)):
            return count(page)
        page.wait_for_timeout(50)
    raise AssertionError(page.locator("body").aria_snapshot())


def choose(page, stack: str) -> None:
    page.get_by_role("combobox", name="Stack").select_option(stack)


def picture(page, name: str) -> str:
    """Address of what is shown, which changes with it."""
    return page.get_by_role("img", name=f"{name} in the slice").get_attribute("src")


def write_walls(path, repeats: int):
    """A map of walls, repeated side by side, as an ImageJ TIFF without compression or voxel size."""
    import tifffile

    _, truth = simulate_germline((8, 100, 100), seed=7)
    walls = np.tile(simulated_walls(truth), (1, repeats, repeats))
    tifffile.imwrite(path, walls, imagej=True, metadata={"axes": "ZYX"})
    return walls


def type_into(page, name: str, text: str) -> None:
    field = page.get_by_role("textbox", name=name)
    field.fill(text)
    field.press("Enter")


def test_first_stack_without_code(page):
    assert page.title() == "Cells in 3D"
    assert count(page) > 30
    assert "F1@.5" in page.locator(FOUND).inner_text()
    assert page.locator(".jp-InputArea-editor").count() == 0
    assert "StackExplorer(" not in page.locator("body").inner_text()


def test_every_control_has_a_name(page):
    page.locator("[role=slider][aria-label=Beta]").wait_for()
    kinds = r"(?:slider|spinbutton|combobox|button|checkbox|textbox)"
    controls = re.findall(rf"- ({kinds}.*)", page.locator("body").aria_snapshot())
    assert len(controls) > 20
    nameless = [one for one in controls if not re.match(rf'{kinds} "[^"]+', one)]
    assert not nameless, nameless


def test_scrolling_shows_another_slice(page):
    before = {name: picture(page, name) for name in VIEWS}
    slider = page.get_by_role("slider", name="Slice").locator("visible=true")
    slider.press("ArrowRight")
    for name in VIEWS:
        shown = page.get_by_role("img", name=f"{name} in the slice")
        page.wait_for_function("([one, before]) => one.src != before", arg=[shown.element_handle(), before[name]])
    button = page.get_by_role("button", name="Superpixels", exact=True)
    for state in ("hidden", "visible"):
        button.click()
        page.get_by_role("img", name="Superpixels in the slice").wait_for(state=state)


def test_moving_controls_changes_the_cells(page):
    before = count(page)
    set_number(page, "Beta", 0.95)
    more = wait_for_count(page, lambda n: n > before)
    set_number(page, "Beta", 0.05)
    wait_for_count(page, lambda n: n < more)
    set_number(page, "Beta", read_specification("membranes3d").postprocessing.beta)
    wait_for_count(page, lambda n: n == before)
    set_number(page, "Smallest cell, µm", 5)
    wait_for_count(page, lambda n: n < before)
    set_number(page, "Smallest cell, µm", 0)
    wait_for_count(page, lambda n: n == before)


def test_several_patches_wait_for_the_button(page):
    before = count(page)
    type_into(page, "Patch z, y, x, px", "24, 120, 120")
    line = wait_for_line(page, "patches of 24 x 120 x 120 voxels")
    assert "press “Find the walls”" in line
    page.get_by_role("img", name="Cells in the slice").wait_for(state="hidden")
    page.get_by_role("button", name="Find the walls").click()
    wait_for_count(page, lambda n: 0.7 * before < n < 1.4 * before)
    type_into(page, "Patch z, y, x, px", "24, 200, 200")
    wait_for_count(page, lambda n: n == before)


def test_upload_of_30_megabytes(page, tmp_path):
    """The labels that are saved are those of `segment_boundaries`; no network is asked."""
    path = tmp_path / "walls.tif"
    walls = write_walls(path, repeats=10)
    assert path.stat().st_size > 30e6
    page.get_by_role("button", name="Walls already").click()
    upload(page, path, "Open a stack")
    cubes = wait_for_count(page, lambda n: n > 500)
    type_into(page, "Voxel z, y, x, µm", "0.5, 0.2, 0.2")
    before = wait_for_count(page, lambda n: n != cubes)
    set_number(page, "Beta", 0.9)
    after = wait_for_count(page, lambda n: n > before)
    saved = download(page, "Save cells")
    assert saved.name == "walls_labels.tif"
    labels = read_labels(saved)
    how = read_specification("membranes3d").postprocessing.model_dump() | {"beta": 0.9}
    how = {name: value for name, value in how.items() if "foreground" not in name}
    expected = segment_boundaries(walls, **how, pixel_size_um=EDGES)
    assert np.array_equal(labels, expected)
    assert labels.max() == after
    assert f"{after:,} cells" in wait_for_line(page, "walls_labels.tif")
    page.get_by_role("button", name="Network").click()
    assert "49 patches of 8 x 200 x 200 voxels, about" in wait_for_line(page, "patches of")


def test_wrong_files_give_one_line(page, tmp_path):
    page.get_by_role("button", name="Walls already").click()
    image, _ = simulate_germline((6, 48, 48), seed=1)
    whole = write_image(tmp_path / "whole.tif", image[0], "ZYX")
    notes, cut = tmp_path / "notes.txt", tmp_path / "cut.tif"
    notes.write_text("Dear all")
    cut.write_bytes(whole.read_bytes()[:2000])
    for path in (notes, cut):
        upload(page, path, "Open a stack")
        assert "\n" not in wait_for_line(page, path.name).strip()
    channels = write_image(tmp_path / "two.tif", image.swapaxes(0, 1), "ZCYX")
    upload(page, channels, "Open a stack")
    wait_for_line(page, "two.tif has 2 channels: choose one to segment")
    page.get_by_role("combobox", name="Channel").select_option("1")
    page.get_by_role("img", name="Stack in the slice").wait_for()
    choose(page, "simulated wall probability")
    wait_for_count(page, lambda n: n > 30)
