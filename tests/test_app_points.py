"""The app for points as a person uses it: a web page in a browser, driven by playwright."""

import re
import time

import numpy as np
import pytest
from test_app import (
    CHROMIUM,
    NAMES,
    PATIENCE_S,
    browser_page,
    served,
    set_number,
    upload,
    wait_for_line,
)

from cellseg_nb.data.catalog import samples
from cellseg_nb.data.count_samples import counting_samples
from cellseg_nb.data.io import read_image
from cellseg_nb.data.phase import write_phase_contrast
from cellseg_nb.data.points import points_of
from cellseg_nb.data.projects import read_project, read_quality

COUNTED = re.compile(r"([\d,]+) points?\b")
HEAD = ".widget-html:has-text('train')"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(NAMES)} is installed")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("playwright", reason="the Python package playwright is not installed")
    folder = tmp_path_factory.mktemp("voila")
    with served(folder, "points") as address, browser_page(height=1250) as page:
        page.goto(address, wait_until="commit")
        canvas(page).wait_for()
        page.wait_for_function("document.querySelector('canvas[role=img]').dataset.view")
        yield page


@pytest.fixture
def project(page, tmp_path):
    """A project of two pictures, opened in the app."""
    folder = tmp_path / "plate"
    somebody = tmp_path.name  # another one in every test
    write_phase_contrast(folder, 2, seed=1, annotators={somebody: {"double_rate": 0}})
    field = page.get_by_role("textbox", name="Project")
    field.fill(str(folder))
    field.press("Enter")
    annotator = page.get_by_role("combobox", name="Annotator")
    wait_until(page, lambda: annotator.input_value() == somebody)
    wait_for_points(page, len(points_of(read_project(folder).points, "phase_001")))
    page.get_by_role("button", name="Points", exact=True).click()
    yield folder
    page.get_by_role("button", name="Save", exact=True).click()


def canvas(page):
    return page.get_by_role("img", name="the picture")


def screen(page, y: float, x: float) -> tuple[float, float]:
    """Where a position of the picture lies in the window."""
    page.wait_for_timeout(200)  # until it is drawn
    box = canvas(page).bounding_box()
    left, top, zoom = map(float, canvas(page).get_attribute("data-view").split())
    return box["x"] + left + (x + 0.5) * zoom, box["y"] + top + (y + 0.5) * zoom


def count(page) -> int:
    """How many points the page says there are."""
    return int(COUNTED.search(page.locator(HEAD).first.inner_text())[1].replace(",", ""))


def wait_for_points(page, wanted: int) -> None:
    wait_until(page, lambda: count(page) == wanted)


def wait_until(page, is_so) -> None:
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end, page.locator("body").aria_snapshot()
        page.wait_for_timeout(50)


def drag(page, *positions: tuple[float, float]) -> None:
    page.mouse.move(*screen(page, *positions[0]))
    page.mouse.down()
    for position in positions[1:]:
        page.mouse.move(*screen(page, *position), steps=8)
    page.mouse.up()


def tick(page, name: str, on: bool = True) -> None:
    page.get_by_role("checkbox", name=name).set_checked(on)


def save(page) -> str:
    page.get_by_role("button", name="Save", exact=True).click()
    return wait_for_line(page, "points.csv")


def saved(folder, image: str = "phase_001") -> np.ndarray:
    return points_of(read_project(folder).points, image)


def free_places(points: np.ndarray, number: int = 3) -> list[tuple[int, int]]:
    """Places of a picture of 256 px that are far from all points and from each other."""
    places = []
    for place in np.stack(np.meshgrid(*2 * [np.arange(24, 232, 9)]), -1).reshape(-1, 2):
        away = np.vstack([points, *places])
        if np.hypot(*(away - place).T).min() > 14 and len(places) < number:
            places.append(tuple(place.tolist()))
    return places


def test_first_picture_without_code(page):
    assert page.title() == "Points and scribbles"
    assert count(page) > 10 and "heat map sums to" in page.locator(HEAD).first.inner_text()
    assert "PointEditor(children" not in page.locator("body").inner_text()


def test_every_control_has_a_name(page):
    page.locator("[role=slider][aria-label='Brush, px']").wait_for()
    kinds = r"(?:slider|spinbutton|combobox|button|checkbox|textbox)"
    controls = re.findall(rf"- ({kinds}.*)", page.locator("body").aria_snapshot())
    assert len(controls) > 20
    nameless = [one for one in controls if not re.match(rf'{kinds} "[^"]+', one)]
    assert not nameless, nameless


def test_points_are_placed_moved_and_deleted(page, project, tmp_path):
    before = saved(project)
    first, second, third = free_places(before)
    page.mouse.click(*screen(page, *first))
    page.mouse.click(*screen(page, *second))
    wait_for_points(page, len(before) + 2)
    drag(page, second, (second[0] + 2, second[1] + 5), third)
    page.mouse.click(*screen(page, *before[0]), button="right")
    wait_for_points(page, len(before) + 1)
    page.keyboard.down("Shift")
    page.mouse.click(*screen(page, *before[1]))
    page.keyboard.up("Shift")
    wait_for_points(page, len(before))
    page.screenshot(path=tmp_path.parent / "points.png")
    assert f"{len(before):,} points here" in save(page)
    expected = [*before[2:], first, third]
    assert np.abs(saved(project) - expected).max() < 0.6


def test_wheel_zooms_where_it_points(page, project):
    before = saved(project)
    (place,) = free_places(before, 1)
    zoom = float(canvas(page).get_attribute("data-view").split()[2])
    page.mouse.move(*screen(page, *place))
    page.mouse.wheel(0, -800)
    wait_until(page, lambda: float(canvas(page).get_attribute("data-view").split()[2]) > 2 * zoom)
    page.mouse.click(*screen(page, *place))
    wait_for_points(page, len(before) + 1)
    drag(page, (place[0] + 4, place[1] - 6), (place[0], place[1]))  # moves the picture
    wait_for_points(page, len(before) + 1)
    page.get_by_role("button", name="Whole picture").click()
    assert np.abs(screen(page, 0, 0)[1] - canvas(page).bounding_box()["y"]) < 5
    save(page)
    assert np.abs(saved(project)[-1] - place).max() < 0.1


def test_undo_and_the_other_picture(page, project):
    before = saved(project)
    page.mouse.click(*screen(page, *free_places(before, 1)[0]))
    wait_for_points(page, len(before) + 1)
    page.keyboard.press("Control+z")
    wait_for_points(page, len(before))
    page.get_by_role("button", name="Delete all points").click()
    wait_for_points(page, 0)
    page.get_by_role("combobox", name="Picture").select_option("phase_002")  # which saves
    wait_for_points(page, len(saved(project, "phase_002")))
    assert len(saved(project)) == 0
    page.get_by_role("combobox", name="Points are").select_option("CONFLICT")
    wait_until(page, lambda: "does not train" in page.locator(HEAD).first.inner_text())
    save(page)
    status = read_quality(project / "data_quality.csv").set_index("image")["annotation_status"]
    assert status["phase_002"] == "CONFLICT"


def test_scribbles_become_a_mask(page, project):
    (project / "masks" / "phase_001.png").replace(project / "true.png")
    truth = read_image(project / "true.png").pixels > 0
    page.get_by_role("combobox", name="Picture").select_option("phase_002")
    page.get_by_role("combobox", name="Picture").select_option("phase_001")
    tick(page, "Foreground")
    wait_for_line(page, "has no mask in the project yet")
    page.get_by_role("combobox", name="Foreground").select_option("My scribbles")
    wait_for_line(page, "Paint some background and some foreground first")
    tick(page, "Foreground", False)  # else every stroke teaches the classifier again
    set_number(page, "Brush, px", 3)
    free, n_strokes = free_places(saved(project), 6), 0
    for tool, places in (("Foreground", saved(project)[:8]), ("Background", free)):
        page.get_by_role("button", name=tool, exact=True).click()
        for y, x in places:
            if truth[int(y), int(x)] == (tool == "Foreground"):
                drag(page, (y, x), (y, x + 1))
                n_strokes += 1
    painted = f"{n_strokes} new strokes"
    wait_until(page, lambda: painted in page.locator(HEAD).first.inner_text())
    page.get_by_role("button", name="Save mask").click()
    assert "% foreground" in wait_for_line(page, "phase_001.png")
    save(page)
    scribbles = read_image(project / "scribbles" / "phase_001.png").pixels
    assert set(np.unique(scribbles)) == {0, 1, 2}
    learned = read_image(project / "masks" / "phase_001.png").pixels > 0
    assert (learned & truth).sum() / (learned | truth).sum() > 0.3
    before = canvas(page).screenshot()
    tick(page, "Foreground")
    tick(page, "Ignored zones")
    set_number(page, "Ignored beyond, px", 8)
    wait_until(page, lambda: "% of the picture ignored" in page.locator(HEAD).first.inner_text())
    page.wait_for_timeout(500)
    assert canvas(page).screenshot() != before
    tick(page, "Ignored zones", False)
    tick(page, "Foreground", False)


def test_uploads_and_wrong_files(page, project, tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("Dear all")
    upload(page, notes, "Add an image file")
    assert "\n" not in wait_for_line(page, "notes.txt").strip()
    sample = samples("sample")[0]
    upload(page, sample.image_path, "Add an image file")
    page.get_by_role("img", name=f"the picture {sample.image_path.stem}").wait_for()
    wait_for_points(page, 0)
    page.mouse.click(*screen(page, 100, 200))
    wait_for_points(page, 1)
    save(page)
    assert (project / "images" / sample.image_path.name).is_file()
    (added,) = [one for one in counting_samples(project) if one.name == sample.image_path.stem]
    assert np.abs(added.points - [100, 200]).max() < 0.6 and added.annotation_status == "sparse"


def test_a_folder_that_is_no_project(page, project, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "points.csv").write_text("image,x\na,1\n")
    field = page.get_by_role("textbox", name="Project")
    field.fill(str(tmp_path / "bad"))
    field.press("Enter")
    wait_for_line(page, "has no column y")
    wait_until(page, lambda: field.input_value() == str(project))
