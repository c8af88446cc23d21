"""The app as a person uses it: a web page in a browser, driven by playwright. Skipped where there is no Chromium."""

import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from cellseg_nb.data.catalog import samples
from cellseg_nb.data.io import read_labels, write_image
from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.measure.matching import match
from cellseg_nb.run.analyse import SegmentSettings, segment_image

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
# no sandbox: containers cannot make one; the rules: nothing but this computer can be reached
ARGUMENTS = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost"]
PATIENCE_S = 600  # a busy machine is slow; nothing waits longer than it must
COUNTED = re.compile(r"([\d,]+) objects")
FOUND = ".widget-html:has-text('objects ·')"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"none of {', '.join(NAMES)} is installed")


@contextmanager
def served(folder: Path, app: str = "segment"):
    """Serve an app as `make app-segment` and its siblings do, on a free port."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    make = ["make", "-n", f"app-{app}"]
    shown = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in shown.splitlines() if f"voila nbs/apps/{app}.ipynb" in line]
    command = [word for word in shlex.split(line) if not word.startswith("--Voila.port=")]
    command[0] = str(Path(sys.executable).parent / "voila")
    command += [f"--Voila.port={port}", "--Voila.port_retries=0"]
    with open(folder / "voila.log", "w+") as log:
        server = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        try:
            end = time.monotonic() + PATIENCE_S
            while not _answers(port):
                assert server.poll() is None and time.monotonic() < end, Path(log.name).read_text()
                time.sleep(0.1)
            yield f"http://localhost:{port}"
        finally:
            server.terminate()
            server.wait(60)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("localhost", port), timeout=1).close()
    except OSError:
        return False
    return True


@contextmanager
def browser_page(width: int = 1280, height: int = 900):
    """Open an empty page in Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(1000 * PATIENCE_S)
        yield page
        browser.close()


QUIET = ("favicon", "net::ERR_NAME_NOT_RESOLVED")  # what a page asks of the network in vain


@contextmanager
def quiet_page(folder: Path, app: str):
    """The page of an app; at the end, nothing must have gone wrong in it."""
    pytest.importorskip("playwright", reason="the Python package playwright is not installed")
    with served(folder, app) as address, browser_page(height=1000) as page:
        said = []
        page.on("console", lambda one: one.type == "error" and said.append(one.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(address, wait_until="commit")
        yield page
        said = [one for one in said if not any(word in one for word in QUIET)]
        assert not said, said


def open_app(page, address: str) -> None:
    """Open the app and wait until its first picture is there."""
    page.goto(address, wait_until="commit")
    page.locator(FOUND).wait_for()
    picture = page.locator("img.widget-image")
    picture.wait_for()
    page.wait_for_function("document.querySelector('img.widget-image').naturalWidth > 0")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("playwright", reason="the Python package playwright is not installed")
    with served(tmp_path_factory.mktemp("voila")) as address, browser_page() as page:
        open_app(page, address)
        yield page


def count(page) -> int:
    """How many objects the page says there are."""
    return int(COUNTED.search(page.locator(FOUND).inner_text())[1].replace(",", ""))


def wait_for_count(page, is_right) -> int:
    """Wait until the count is as it should be."""
    end = time.monotonic() + PATIENCE_S
    while page.locator(FOUND).count() != 1 or not is_right(count(page)):
        assert time.monotonic() < end, page.locator("body").aria_snapshot()
        page.wait_for_timeout(50)
    return count(page)


def choose(page, picture: str = "simulated nuclei", method: str = "Network") -> None:
    page.get_by_role("combobox", name="Picture").select_option(picture)
    page.get_by_role("button", name=method).click()


def upload(page, path: Path, button: str = "Open an image file") -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name=button).click()
    chooser.value.set_files(path)


def download(page, button: str) -> Path:
    with page.expect_download() as saved:
        page.get_by_role("button", name=button).click()
    path = Path(saved.value.path())
    return path.rename(path.with_name(saved.value.suggested_filename))


def set_number(page, name: str, value: float) -> None:
    field = page.get_by_role("spinbutton", name=name).locator("visible=true")
    field.fill(str(value))
    field.press("Enter")


def wait_for_line(page, text: str) -> str:
    line = page.get_by_role("status").filter(has_text=text)
    line.wait_for()
    return line.inner_text()


def test_first_picture_without_code(page):
    assert page.title() == "Segment and count"
    assert count(page) > 50
    assert "AP@.5" in page.locator(FOUND).inner_text()
    assert "Explorer(" not in page.locator("body").inner_text()
    assert page.locator(".jp-InputArea-editor").count() == 0


def test_every_control_has_a_name(page):
    page.locator("[role=slider][aria-label=Threshold]").wait_for()
    page.get_by_role("img", name="the picture").wait_for()
    kinds = r"(?:slider|spinbutton|combobox|button|checkbox)"
    controls = re.findall(rf"- ({kinds}.*)", page.locator("body").aria_snapshot())
    assert len(controls) > 10
    nameless = [one for one in controls if not re.match(rf'{kinds} "[^"]+', one)]
    assert not nameless, nameless


def test_field_and_handle_show_one_number(page):
    """A handle in steps of 0.01 from 0.02 gives 0.7000000000000001, which the field must not show."""
    from playwright.sync_api import expect

    choose(page)
    field = page.get_by_role("spinbutton", name="Threshold").locator("visible=true")
    handle = page.locator("[role=slider][aria-label=Threshold]").locator("visible=true")
    set_number(page, "Threshold", 0.69)
    expect(handle).to_have_attribute("aria-valuetext", re.compile(r"^0\.69"))
    for number in ("0.7", "0.71", "0.72", "0.73"):
        handle.press("ArrowRight")
        expect(field).to_have_value(number)
    for _ in range(23):
        handle.press("ArrowLeft")  # faster than the kernel answers
    expect(field).to_have_value("0.5")
    expect(handle).to_have_attribute("aria-valuetext", "0.5")


def test_moving_a_control_changes_the_count(page):
    choose(page)
    before = count(page)
    set_number(page, "Smallest object, px", 600)
    fewer = wait_for_count(page, lambda n: n < before)
    slider = page.get_by_role("slider", name="Smallest object, px").locator("visible=true")
    slider.press("Home")
    wait_for_count(page, lambda n: n > fewer)
    field = page.get_by_role("spinbutton", name="Smallest object, px").locator("visible=true")
    assert float(field.input_value()) == 0
    set_number(page, "Smallest object, px", 30)
    wait_for_count(page, lambda n: n == before)


def test_upload_and_download(page):
    """The labels that are saved are those of `segment_image`."""
    sample = samples("sample")[0]
    choose(page)
    set_number(page, "Threshold", 0.4)
    upload(page, sample.image_path)
    labels = segment_image(sample.image(), "nuclei", SegmentSettings(threshold=0.4)).labels
    wait_for_count(page, lambda n: n == labels.max())
    path = download(page, "Labels")
    assert path.name == "img2d_labels.tif"
    assert match(labels, read_labels(path)).mean_ap == 1
    table = download(page, "Table").read_text().splitlines()
    assert table[0].startswith("label,") and len(table) == 1 + labels.max()
    set_number(page, "Threshold", 0.5)


def test_upload_of_30_megabytes(page, tmp_path):
    tile, truth = simulate_nuclei((500, 500), 60, clustering=0, seed=1)
    path = write_large(tmp_path / "slide.tif", np.tile(tile, (8, 8)))
    assert path.stat().st_size > 30e6
    choose(page, method="Otsu")
    upload(page, path)
    line = wait_for_line(page, "A preview of 4000 x 4000 px")
    assert "saved files hold the whole result" in line
    about = wait_for_count(page, lambda n: n > 32 * truth.max())
    labels = read_labels(download(page, "Labels"))
    assert labels.shape == (4000, 4000)
    assert int(labels.max()) == pytest.approx(about, rel=0.1)
    assert f"{labels.max():,} objects" in wait_for_line(page, "slide_labels.tif")


def write_large(path: Path, pixels: np.ndarray) -> Path:
    """Write an uncompressed TIFF."""
    import tifffile

    tifffile.imwrite(path, pixels)
    return path


def test_wrong_files_give_one_line(page, tmp_path):
    choose(page, method="Otsu")
    before = wait_for_count(page, lambda n: 0 < n < 1000)  # the simulated picture again
    image, _ = simulate_nuclei((96, 96), 8, seed=1)
    notes, cut = tmp_path / "notes.txt", tmp_path / "cut.tif"
    notes.write_text("Dear all")
    cut.write_bytes(write_image(tmp_path / "whole.tif", image, "YX").read_bytes()[:2000])
    for path in (notes, cut):
        upload(page, path)
        assert "\n" not in wait_for_line(page, path.name).strip()
        assert count(page) == before
    channels = write_image(tmp_path / "two.tif", np.stack([image, image]), "CYX")
    upload(page, channels)
    wait_for_line(page, "two.tif has more than one channel (2): choose one")
    page.get_by_role("combobox", name="Channel").select_option("1")
    wait_for_count(page, lambda n: 0 < n < before)
