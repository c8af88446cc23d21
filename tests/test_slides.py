"""Whole slides by the command `cellseg`: masks, outlines, run lengths; killed and resumed; what is refused."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import tifffile
from test_cli import error_of, run

from cellseg_nb.data.catalog import data_folder
from cellseg_nb.data.rle import parse_rle, read_rle_csv
from cellseg_nb.data.simulate_slides import simulate_slide

SHAPE, UM_PER_PX = (2400, 2000), 2.0


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A slide, and the mask of its glomeruli."""
    path = tmp_path_factory.mktemp("slide") / "kidney.tif"
    return path, simulate_slide(path, SHAPE, UM_PER_PX, seed=900)


@pytest.fixture(scope="module")
def found(slide, tmp_path_factory):
    out = tmp_path_factory.mktemp("found")
    run("slide", slide[0], "--out", out, "--tile", 256, "--overlap", 32)
    return out


def test_glomeruli_are_found(slide, found):
    truth = slide[1].mask().astype(bool)
    mask = parse_rle(read_rle_csv(found / "predicted.csv")["kidney"], SHAPE).mask().astype(bool)
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.9
    counts, n_true = pd.read_csv(found / "counts.csv"), slide[1].objects().max()
    assert abs(counts["count"][0] - n_true) <= 0.1 * n_true
    assert counts["unlike_training"].tolist() == [False]
    objects = pd.read_csv(found / "objects.csv")
    assert len(objects) == counts["count"][0]
    np.testing.assert_allclose(objects["area_um2"].sum(), mask.sum() * UM_PER_PX**2)


def rewritten(path, to, **options):
    """A slide as other programs write it: levels rounded down, or in gray."""
    pixels = tifffile.imread(path, level=0)[:1999, :1799]
    if options.pop("gray", False):
        pixels = pixels[..., 1]
    with tifffile.TiffWriter(to, ome=options.pop("ome", None)) as tif:
        for number in range(3):
            first = options if number == 0 else {}
            kind = "minisblack" if pixels.ndim == 2 else "rgb"
            edge = (1e4 / UM_PER_PX / 2**number,) * 2
            tif.write(
                pixels,
                tile=(256, 256),
                photometric=kind,
                compression="zlib",
                subfiletype=int(number > 0),
                resolution=edge,
                resolutionunit="CENTIMETER",
                **first | ({} if number == 0 and "metadata" in first else {"metadata": None}),
            )
            pixels = pixels[: len(pixels) // 2 * 2, : pixels.shape[1] // 2 * 2][::2, ::2]


@pytest.mark.parametrize("how", [{}, {"gray": True}])
def test_slides_of_other_programs(slide, tmp_path, how):
    rewritten(slide[0], tmp_path / "other.tif", **how)
    run("slide", tmp_path / "other.tif", "--out", tmp_path / "out")
    counts = pd.read_csv(tmp_path / "out" / "counts.csv")
    assert counts["tissue_percent"][0] > 30
    assert how or counts["count"][0] > 3


def test_a_slide_without_tissue_is_named(tmp_path, capsys):
    from cellseg_nb.data.slides import write_pyramid

    write_pyramid(tmp_path / "glass.tif", iter([np.full((600, 800, 3), 240, np.uint8)]), 8.0, (600, 800, 3))
    done = run("slide", tmp_path / "glass.tif", "--out", tmp_path / "out")
    assert "no tissue in glass" in done.stderr and "--tissue-threshold" in done.stderr


def test_labels_and_overviews_beside_a_slide_are_passed_over(tmp_path):
    from cellseg_nb.data.slides import open_slide

    path, pixels = tmp_path / "converted.ome.tif", np.zeros((512, 640, 3), np.uint8)
    with tifffile.TiffWriter(path, ome=True) as tif:
        for name, size in {"slide": (512, 640), "label image": (90, 120), "macro image": (60, 200)}.items():
            tif.write(pixels[: size[0], : size[1]], photometric="rgb", metadata={"axes": "YXS", "Name": name})
    text = (
        tifffile.tiffcomment(path)
        .replace(
            "<Image ",
            '<Instrument ID="Instrument:0"><Objective ID="Objective:0" NominalMagnification="40.0"/></Instrument><Image ',
            1,
        )
        .replace("<Pixels ", '<ObjectiveSettings ID="Objective:0"/><Pixels ', 1)
    )
    tifffile.tiffcomment(path, text.encode())
    with open_slide(path, magnification=10) as slide:
        assert slide.levels[0] == (512, 640) and slide.shape == (128, 160)


def test_tiles_of_another_slide_of_that_name_are_kept(slide, tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        rewritten(slide[0], tmp_path / folder / "case.tif", gray=folder == "b")
    run("tiles", "create", tmp_path / "a" / "case.tif", "--reduce", 4, "--out", tmp_path / "tiles")
    before = sorted((tmp_path / "tiles" / "images").iterdir())
    said = error_of("tiles", "create", tmp_path / "b" / "case.tif", "--reduce", 4, "--out", tmp_path / "tiles", code=1)
    assert "another slide of that name" in said
    assert before and sorted((tmp_path / "tiles" / "images").iterdir()) == before


def test_pixel_sizes_a_hair_apart_are_one_resolution(tmp_path):
    from cellseg_nb.data.simulate_slides import simulate_slide

    for name, um in {"near": 2.000002, "far": 1.9}.items():
        runs = simulate_slide(tmp_path / "slides" / f"{name}.tif", (2000, 2048), um, seed=5)
        (tmp_path / f"{name}.csv").write_text(f"id,encoding\n{name},{runs.text()}\n")
        run(
            "tiles",
            "create",
            tmp_path / "slides" / f"{name}.tif",
            tmp_path / f"{name}.csv",
            "--um-per-px",
            8,
            "--out",
            tmp_path / name,
        )
        run(
            "tiles",
            "stitch",
            tmp_path / name / "masks",
            "--manifest",
            tmp_path / name / "manifest.csv",
            "--out",
            tmp_path / f"{name}_back",
        )
        scored = run(
            "tiles",
            "score",
            tmp_path / "slides" / f"{name}.tif",
            "--truth",
            tmp_path / f"{name}.csv",
            "--pred",
            tmp_path / f"{name}_back" / "predicted.csv",
        )
        assert float(scored.stdout.split()[6]) > 0.9, scored.stdout
        assert pd.read_csv(tmp_path / name / "manifest.csv")["um_per_px"].unique().tolist() == [8.0]


def test_what_is_no_kidney_is_said_to_be_unlike(tmp_path):
    from skimage.data import coffee

    from cellseg_nb.data.slides import write_pyramid

    write_pyramid(tmp_path / "coffee.tif", iter([coffee()]), 8.0, coffee().shape)
    run("slide", tmp_path / "coffee.tif", "--out", tmp_path / "out")
    counts = pd.read_csv(tmp_path / "out" / "counts.csv")
    assert counts["unlike_training"].tolist() == [True] and "ground is dark" in counts["unlike_because"][0]


def test_masks_are_pyramids_that_are_read_by_region(slide, found):
    mask = parse_rle(read_rle_csv(found / "predicted.csv")["kidney"], SHAPE).mask()
    with tifffile.TiffFile(found / "kidney_mask.ome.tif") as tif:
        levels = tif.series[0].levels
        assert [one.shape for one in levels][:2] == [SHAPE, (1200, 1000)] and len(levels) >= 3
        assert tif.pages[0].is_tiled and 'PhysicalSizeX="2.0"' in tif.ome_metadata
    from cellseg_nb.data.slides import open_slide

    with open_slide(found / "kidney_mask.ome.tif") as stored:
        np.testing.assert_array_equal(stored.read(700, 1300, 500, 1100)[..., 0], 255 * mask[700:1300, 500:1100])


def test_outlines_are_valid_and_in_pixels_of_the_slide(found):
    shapely = pytest.importorskip("shapely.geometry")
    collection = json.loads((found / "kidney.geojson").read_text())
    objects = pd.read_csv(found / "objects.csv")
    assert len(collection["features"]) == len(objects)
    for feature, (_, row) in zip(collection["features"], objects.iterrows()):
        assert feature["properties"]["objectType"] == "annotation"
        polygon = shapely.shape(feature["geometry"])
        assert polygon.is_valid
        for part in getattr(polygon, "geoms", [polygon]):
            assert part.exterior.is_closed
        np.testing.assert_allclose(polygon.area * UM_PER_PX**2, row["area_um2"])
        bounds = row[["x_min_px", "y_min_px", "x_max_px", "y_max_px"]].to_numpy(float) + [0, 0, 1, 1]
        np.testing.assert_allclose(polygon.bounds, bounds)


def test_killed_in_the_middle_it_goes_on_to_the_same_mask(slide, found, tmp_path):
    out = tmp_path / "out"
    call = [
        sys.executable,
        "-c",
        "from cellseg_nb.run.cli import main; main()",
        "slide",
        slide[0],
        "--out",
        out,
        "--tile",
        "256",
        "--overlap",
        "32",
    ]
    process = subprocess.Popen([str(one) for one in call], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    note = out / ".kidney_scratch" / "rows.json"
    rows, until = 0, time.monotonic() + 240
    while not rows and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
        rows = json.loads(note.read_text())["rows"] if note.is_file() else 0
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert rows and not (out / "kidney_mask.ome.tif").exists()
    run("slide", slide[0], "--out", out, "--tile", 256, "--overlap", 32)
    for name in ("kidney_rle.csv", "kidney_mask.ome.tif", "objects.csv", "kidney.geojson"):
        assert (out / name).read_bytes() == (found / name).read_bytes(), name
    assert not note.parent.exists()


@pytest.mark.parametrize(
    "options, words",
    [
        (["--um-per-px", 1], ["finer", "2 µm"]),
        (["--magnification", 5], ["magnification", "--um-per-px"]),
        (["--um-per-px", 8, "--reduce", 4], ["one of"]),
        (["--model", "nuclei"], ["nuclei", "mask"]),
    ],
)
def test_what_cannot_be_is_refused(slide, tmp_path, options, words):
    said = error_of("slide", slide[0], "--out", tmp_path / "out", *options)
    assert all(word in said for word in words), said


def test_scales_of_a_scanner_make_no_difference(slide, found, tmp_path):
    from cellseg_nb.data.slides import open_slide, write_pyramid

    with open_slide(slide[0], reduce=2) as half:
        write_pyramid(tmp_path / "kidney.tif", half.read(), 2 * UM_PER_PX, quality=95)
    run("slide", tmp_path / "kidney.tif", "--out", tmp_path / "out", "--tile", 256, "--overlap", 32)
    one, other = (pd.read_csv(where / "counts.csv") for where in (found, tmp_path / "out"))
    assert abs(one["count"][0] - other["count"][0]) <= max(1, 0.02 * one["count"][0])


SLIDES = data_folder() / "slides" if data_folder() else None


@pytest.mark.skipif(SLIDES is None or not SLIDES.is_dir(), reason="CELLSEG_DATA has no folder slides")
class TestRealSlides:
    def test_a_region_of_aperio(self, tmp_path):
        run("slide", SLIDES / "cmu1_small_region.svs", "--out", tmp_path)
        counts = pd.read_csv(tmp_path / "counts.csv").iloc[0]
        assert (counts["height_px"], counts["width_px"]) == (2967, 2220)
        assert counts["pixel_size_um"] == pytest.approx(0.499) and counts["um_per_px"] == 8
        assert counts["unlike_training"]

    def test_without_a_pixel_size_it_is_in_pixels(self, tmp_path):
        path = SLIDES / "tcga_jpeg2000.svs"
        assert "--pixel-size" in error_of("slide", path, "--out", tmp_path / "a")
        assert "--pixel-size" in error_of("slide", path, "--out", tmp_path / "b", "--reduce", 16, "--min-area-um2", 100)
        run("slide", path, "--out", tmp_path / "c", "--reduce", 16)
        counts = pd.read_csv(tmp_path / "c" / "counts.csv")
        assert "tissue_mm2" not in counts and (counts["height_px"][0], counts["width_px"][0]) == (3567, 4443)

    def test_a_broken_one_is_one_line(self, tmp_path):
        said = error_of("slide", SLIDES / "broken.svs", "--out", tmp_path)
        assert "broken.svs" in said and "Traceback" not in said
