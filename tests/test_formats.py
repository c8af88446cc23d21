"""File formats: whole and by region is the same, and a format of one's own works everywhere at once."""

import subprocess
import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image as Picture
from typer.testing import CliRunner

from cellseg_nb.data.formats.base import FORMATS, Format, Reader, register_format
from cellseg_nb.data.io import (
    IMAGE_SUFFIXES,
    find_images,
    image_stem,
    open_image,
    open_plane,
    read_image,
    read_labels,
    select_plane,
    write_image,
    write_labels,
)
from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.run.cli import app

SUFFIXES = tuple(IMAGE_SUFFIXES)  # before a test adds its own
RNG = np.random.default_rng(0)
SMOOTH = np.fromfunction(lambda y, x: 120 + 99 * np.sin(x / 9) * np.sin(y / 7), (70, 90))
GRAY = SMOOTH.astype(np.uint16) * 9
RGB = np.stack([SMOOTH, SMOOTH[::-1], SMOOTH[:, ::-1]], axis=-1).astype(np.uint8)
STACK = RNG.integers(0, 60_000, (2, 4, 3, 33, 41), dtype=np.uint16)  # TZCYX


# --- every sample of every format, whole and by region -----------------------------------------


def tiff_samples(folder):
    layouts = {
        "plain": {},
        "zlib": dict(compression="zlib", rowsperstrip=7, predictor=True),
        "tiles": dict(tile=(16, 32)),
        "lzw": dict(tile=(32, 16), compression="lzw"),
        "big_endian": dict(byteorder=">"),
    }
    for name, layout in layouts.items():
        tifffile.imwrite(folder / f"gray_{name}.tif", GRAY, **layout)
        tifffile.imwrite(folder / f"float_{name}.tif", GRAY.astype(np.float32), **layout)
        tifffile.imwrite(folder / f"rgb_{name}.tif", RGB, photometric="rgb", **layout)
        opaque = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
        tifffile.imwrite(folder / f"opaque_{name}.tif", opaque, photometric="rgb", **layout)
        kind = dict(photometric="minisblack")
        tifffile.imwrite(folder / f"stack_{name}.tif", STACK, **kind, metadata=dict(axes="TZCYX"), **layout)
        inside = np.moveaxis(STACK[0, 0], 0, -1)
        tifffile.imwrite(folder / f"inside_{name}.tif", inside, **kind, planarconfig="contig", **layout)
    tifffile.imwrite(folder / "bits.tif", GRAY > 999)
    tifffile.imwrite(folder / "jpeg.tif", RGB, photometric="rgb", compression="jpeg", tile=(32, 32))
    tifffile.imwrite(folder / "imagej.tif", STACK, imagej=True, metadata=dict(axes="TZCYX"))
    return folder.glob("*.tif")


def ome_set(folder, names, stack, axis):
    """A file per plane along an axis; each of them describes them all."""
    for plane, own in enumerate(names):
        sizes = {letter: len(names) if letter == axis else 1 for letter in "ZCT"}
        xml = f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:{own}">'
        xml += '<Image ID="Image:0"><Pixels ID="P:0" DimensionOrder="XYCZT" Type="uint16" '
        xml += f'SizeX="{stack.shape[2]}" SizeY="{stack.shape[1]}" '
        xml += " ".join(f'Size{letter}="{n}"' for letter, n in sizes.items()) + ">"
        xml += '<Channel ID="C" SamplesPerPixel="1"/>' * sizes["C"]
        for number, name in enumerate(names):
            xml += f'<TiffData First{axis}="{number}" IFD="0" PlaneCount="1">'
            xml += f'<UUID FileName="{name}">urn:{name}</UUID></TiffData>'
        xml += "</Pixels></Image></OME>"
        tifffile.imwrite(folder / own, stack[plane], description=xml, metadata=None)


def shown_tiff_samples(folder):
    """What is stored otherwise than it is shown, and images in several files."""
    gray, shuffled = RGB[..., 0], RNG.permutation(256)
    for name, layout in {"plain": {}, "tiles": dict(tile=(16, 32), compression="zlib")}.items():
        white = dict(photometric="miniswhite", **layout)
        tifffile.imwrite(folder / f"white_{name}.tif", 255 - gray, **white)
        tifffile.imwrite(folder / f"white16_{name}.tif", 65_535 - GRAY, **white)
        for kind, table in {
            "gray": np.stack([shuffled] * 3),
            "colour": RNG.integers(0, 256, (3, 256)),
            "lut": np.stack([np.arange(256), np.zeros(256), np.zeros(256)]),
        }.items():
            palette = dict(photometric="palette", colormap=(table * 257).astype(np.uint16))
            tifffile.imwrite(folder / f"palette_{kind}_{name}.tif", gray, **palette, **layout)
        for orientation in range(1, 9):
            turn = dict(extratags=[(274, 3, 1, orientation, True)], **layout)
            tifffile.imwrite(folder / f"turn{orientation}_{name}.tif", GRAY, **turn)
            tifffile.imwrite(folder / f"rgb{orientation}_{name}.tif", RGB, photometric="rgb", **turn)
        four = dict(photometric="rgb", extrasamples=["unspecified"], **layout)
        tifffile.imwrite(folder / f"four_{name}.tif", np.dstack([RGB, gray]), **four)
        for kind in ("unassalpha", "assocalpha"):
            opaque = np.dstack([gray, np.full_like(gray, 255)])
            inside = dict(photometric="minisblack", planarconfig="contig", extrasamples=[kind])
            tifffile.imwrite(folder / f"gray_{kind}_{name}.tif", opaque, **inside, **layout)
    for axis in "ZCT":
        ome_set(folder, [f"set{axis}{n}.ome.tif" for n in range(3)], STACK[0, 0], axis)
    return folder.glob("*.tif")


def zarr_samples(folder):
    write_image(folder / "gray.zarr", GRAY, "YX", 0.5)
    write_image(folder / "rgb.zarr", RGB, "YXC")
    write_image(folder / "stack.zarr", STACK, "TZCYX", (2.0, 0.5, 0.5), ["a", "b", "c"])
    old = zarr.open_group(folder / "old.zarr", mode="w", zarr_format=2)
    old.create_array("0", shape=STACK[0].shape, dtype=STACK.dtype, chunks=(1, 1, 9, 11))
    old["0"][...] = STACK[0]
    axes = [dict(name=name) for name in "zcyx"]
    old.attrs["multiscales"] = [dict(version="0.4", axes=axes, datasets=[dict(path="0")])]
    blank = zarr.open_group(folder / "blank.zarr", mode="w", zarr_format=2)
    blank.create_array("0", shape=(33, 41), dtype="uint16", chunks=(9, 11))
    blank.attrs["multiscales"] = [dict(version="0.4", axes=axes[2:], datasets=[dict(path="0")])]
    return folder.glob("*.zarr")


def picture_samples(folder):
    Picture.fromarray(RGB).save(folder / "rgb.png")
    Picture.fromarray(RGB).save(folder / "rgb.jpg")
    Picture.fromarray(GRAY).save(folder / "gray.png")
    Picture.fromarray(RGB[..., 0]).save(folder / "gray.jpeg")
    Picture.fromarray(RGB).quantize(9).save(folder / "palette.png")
    Picture.fromarray(GRAY > 999).save(folder / "bits.png")
    opaque = np.dstack([RGB[..., 0], np.full(RGB.shape[:2], 255, np.uint8)])
    Picture.fromarray(opaque).save(folder / "opaque.png")
    for orientation in range(1, 9):
        exif = Picture.Exif()
        exif[0x0112] = orientation
        for suffix in ("jpg", "png"):
            Picture.fromarray(RGB).save(folder / f"turn{orientation}.{suffix}", exif=exif)
    film = [Picture.fromarray(one) for one in (RGB, RGB[::-1].copy())]
    film[0].save(folder / "film.png", save_all=True, append_images=film[1:])
    return folder.iterdir()


class Nd2File:
    """Answers as nd2.ND2File does."""

    sizes, dtype = dict(zip("TZCYX", STACK.shape)), STACK.dtype
    metadata = SimpleNamespace(channels=[])

    def __init__(self, path):
        pass

    def read_frame(self, number):
        return STACK.reshape(-1, *STACK.shape[2:])[number]

    def voxel_size(self):
        return SimpleNamespace(x=0.5, y=0.5, z=2.0)

    def close(self):
        pass


@contextmanager
def open_czi(path):
    """Answers as the reader of pylibCZIrw does."""

    def read(roi, plane, scene):
        x, y, w, h = roi
        return STACK[plane["T"], plane["Z"], plane["C"], y : y + h, x : x + w, None]

    yield SimpleNamespace(
        total_bounding_box={axis: (0, n) for axis, n in zip("TZCYX", STACK.shape)},
        total_bounding_rectangle=SimpleNamespace(x=0, y=0, w=STACK.shape[-1], h=STACK.shape[-2]),
        scenes_bounding_rectangle={},
        get_channel_pixel_type=lambda channel: "Gray16",
        raw_metadata="<ImageDocument/>",
        read=read,
    )


def microscope_samples(folder):
    for name in ("film.nd2", "film.czi"):
        (folder / name).write_bytes(b"x")
    return folder.iterdir()


class OpenSlide:
    """Answers as openslide.OpenSlide does."""

    level_dimensions, level_downsamples, level_count, properties = (RGB.shape[1::-1],), (1.0,), 1, {}

    def __init__(self, path):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def close(self):
        pass

    def read_region(self, corner, level, size):
        (x, y), (wide, tall) = corner, size
        return Picture.fromarray(RGB[y : y + tall, x : x + wide].copy()).convert("RGBA")


class WsiDicom(OpenSlide):
    """Answers as wsidicom.WsiDicom does."""

    open = classmethod(lambda kind, files: kind(files))
    pyramid = SimpleNamespace(
        levels=[
            SimpleNamespace(
                level=0,
                size=SimpleNamespace(width=RGB.shape[1], height=RGB.shape[0]),
                mpp=SimpleNamespace(width=0.5, height=0.5),
            )
        ],
        metadata=SimpleNamespace(optical_paths=[]),
    )


def slide_samples(folder):
    layout = dict(photometric="rgb", tile=(32, 32), metadata=None, description="Aperio Image Library")
    tifffile.imwrite(folder / "plain.svs", RGB, compression="jpeg", **layout)
    tifffile.imwrite(folder / "jpeg2000.svs", RGB, compression="jpeg2000", **layout)
    for name in ("slide.ndpi", "slide.mrxs", "slide.dcm"):
        (folder / name).write_bytes(b"x")
    return folder.iterdir()


SAMPLES = {
    "Tiff": lambda folder: [*tiff_samples(folder), *shown_tiff_samples(folder)],
    "OmeZarr": zarr_samples,
    "Pictures": picture_samples,
    "Nd2": microscope_samples,
    "Czi": microscope_samples,
    "Svs": slide_samples,
    "ScannedSlide": slide_samples,
    "Dicom": slide_samples,
}


def random_region(shape, axes):
    """A number or a slice per axis; slices along rows and columns."""
    region = []
    for n, axis in zip(shape, axes):
        start, stop = np.sort(RNG.choice(n + 1, 2, replace=False))
        whole = axis in "YX" or RNG.random() < 0.5
        region.append(slice(int(start), int(stop)) if whole else int(RNG.integers(n)))
    return tuple(region)


def check_both_ways(path):
    with open_image(path) as file:
        whole = file.read()
        assert (whole.shape, whole.dtype) == (file.shape, file.dtype), path
        for _ in range(12):
            region = random_region(file.shape, file.axes)
            np.testing.assert_array_equal(file.read(region), whole[region], err_msg=str(path))
    image = read_image(path)
    choice = {letter.lower(): image.size(letter) - 1 for letter in "ZT"}
    channel = image.size("C") - 1
    plane = select_plane(image, channel, **choice).pixels
    with open_plane(path, channel, **choice) as file:
        np.testing.assert_array_equal(file.read(3, 20, 5, 33), plane[3:20, 5:33])
        np.testing.assert_array_equal(file.read(), plane)
        assert file.dtype == plane.dtype


def test_every_format_has_samples():
    names = {type(FORMATS[suffix]).__name__ for suffix in SUFFIXES}
    assert names == set(SAMPLES), "a new format needs samples here"


@pytest.mark.parametrize("name", SAMPLES)
def test_whole_and_by_region_is_the_same(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nd2", SimpleNamespace(ND2File=Nd2File))
    monkeypatch.setitem(sys.modules, "pylibCZIrw", ModuleType("pylibCZIrw"))
    monkeypatch.setitem(sys.modules, "pylibCZIrw.czi", SimpleNamespace(open_czi=open_czi))
    monkeypatch.setitem(sys.modules, "openslide", SimpleNamespace(OpenSlide=OpenSlide))
    monkeypatch.setitem(sys.modules, "wsidicom", SimpleNamespace(WsiDicom=WsiDicom))
    pydicom = SimpleNamespace(dcmread=lambda *_, **__: {}, errors=None)
    monkeypatch.setitem(sys.modules, "pydicom", pydicom)
    paths = [one for one in SAMPLES[name](tmp_path) if type(FORMATS[one.suffix]).__name__ == name]
    assert paths
    for path in paths:
        check_both_ways(path)


def test_samples_are_what_was_written(tmp_path):
    """Against the libraries, for whole images; with the test above, for regions, too."""
    for path in tiff_samples(tmp_path):
        expected, pixels = tifffile.imread(path), read_image(path).pixels
        expected = expected[..., :3] if path.stem.startswith("opaque") else expected
        expected = np.moveaxis(expected, -1, 0) if path.stem.startswith("inside") else expected
        expected = expected * np.uint8(255) if expected.dtype == bool else expected
        np.testing.assert_array_equal(pixels, expected.reshape(pixels.shape), err_msg=path.name)


def turned(pixels, orientation):
    """As the specification of EXIF has it: where row 0 and column 0 of the file are shown."""
    first_row = {1: "top", 2: "top", 3: "bottom", 4: "bottom", 5: "left", 6: "right", 7: "right", 8: "left"}
    first_column = {1: "left", 2: "right", 3: "right", 4: "left", 5: "top", 6: "top", 7: "bottom", 8: "bottom"}
    pixels = pixels.swapaxes(0, 1) if orientation > 4 else pixels
    sides = {first_row[orientation], first_column[orientation]}
    pixels = pixels[::-1] if "bottom" in sides else pixels
    return pixels[:, ::-1] if "right" in sides else pixels


def test_pictures_are_those_that_viewers_show(tmp_path):
    for path in shown_tiff_samples(tmp_path):
        kind, pixels = path.stem.split("_")[0], read_image(path).pixels
        gray, expected = RGB[..., 0], None
        if kind.startswith(("turn", "rgb")):
            expected = turned(GRAY if kind.startswith("turn") else RGB, int(kind[-1]))
        elif kind.startswith("white"):
            expected = gray if kind == "white" else GRAY
        elif kind == "four":
            expected = np.moveaxis(np.dstack([RGB, gray]), -1, 0)
        elif kind == "gray" or "lut" in path.stem:
            expected = gray
        elif path.name.startswith("set"):
            expected = STACK[0, 0]
        if expected is None:  # palettes, against pillow
            with Picture.open(path) as picture:
                expected = np.asarray(picture.convert("RGB"))
            expected = expected[..., 0] if "gray" in path.stem else expected
        np.testing.assert_array_equal(pixels, expected, err_msg=path.name)
    for path in tmp_path.glob("*.tif"):
        path.unlink()
    for path in picture_samples(tmp_path):
        if path.stem.startswith("turn"):
            with Picture.open(path) as picture:
                stored = np.asarray(picture)
            expected = turned(stored, int(path.stem[-1]))
            np.testing.assert_array_equal(read_image(path).pixels, expected, err_msg=path.name)


# --- a format of one's own ---------------------------------------------------------------------


class Grid(Format):
    """Whole numbers in a text file, one row per line."""

    suffixes = written = (".grid",)

    def open(self, path, axes=None, series=None, labels=False):
        return Reader(path, np.loadtxt(path, np.uint16, ndmin=2), axes or "YX")

    def write(self, path, pixels, axes, edges=None, channels=None, labels=False):
        np.savetxt(path, pixels, fmt="%d")


@pytest.fixture
def grids(tmp_path):
    """Two images and their labels in the toy format."""
    register_format(Grid())
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in (1, 2):
        image, labels = simulate_nuclei((96, 112), n_nuclei=6, seed=number)
        pixels = (image / image.max() * 60_000).astype(np.uint16)
        write_image(tmp_path / "images" / f"cell{number}.grid", pixels, "YX")
        write_labels(tmp_path / "masks" / f"cell{number}_masks.grid", labels)
    yield tmp_path
    FORMATS.pop(".grid")


def run(*arguments):
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("inside", ["", "<MetadataOnly/>"])
def test_ome_that_does_not_say_where_its_planes_are(tmp_path, inside):
    path = tmp_path / "planes.ome.tif"
    xml = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    for number, order in enumerate(("XYCZT", "XYZCT")):
        xml += f'<Image ID="Image:{number}"><Pixels ID="P:{number}" DimensionOrder="{order}" Type="uint16" '
        xml += 'SizeX="41" SizeY="33" SizeZ="4" SizeC="3" SizeT="1" PhysicalSizeX="0.5" PhysicalSizeY="0.5">'
        xml += f'<Channel ID="C"/>{inside}</Pixels></Image>'
    planes = np.concatenate([STACK[0].reshape(-1, 33, 41), STACK[1].swapaxes(0, 1).reshape(-1, 33, 41)])
    tifffile.imwrite(path, planes, description=xml + "</OME>", metadata=None, photometric="minisblack")
    for number in (0, 1):
        image = read_image(path, series=number)
        assert image.axes == "ZCYX" and image.pixel_size_um[1:] == (0.5, 0.5)
        np.testing.assert_array_equal(image.pixels, STACK[number])


def test_a_new_format_is_read_and_written(grids):
    path = grids / "images" / "cell1.grid"
    stored = np.loadtxt(path, np.uint16)
    assert ".grid" in IMAGE_SUFFIXES and image_stem(path) == "cell1"
    assert [one.name for one in find_images(grids / "images")] == ["cell1.grid", "cell2.grid"]
    image = read_image(path)
    assert (image.axes, image.pixel_size_um) == ("YX", None)
    np.testing.assert_array_equal(image.pixels, stored)
    with open_plane(path) as plane:
        np.testing.assert_array_equal(plane.read(10, 30, 40, 90), stored[10:30, 40:90])
    labels = read_labels(grids / "masks" / "cell1_masks.grid")
    assert labels.dtype == np.uint16 and len(np.unique(labels)) > 4
    with pytest.raises(ValueError, match=r"written as .tif, .ome.tif, .png, .zarr or .grid"):
        write_image(grids / "a.docx", stored, "YX")
    path.write_text("1 2\n3 four\n")
    with pytest.raises(ValueError, match="cell1.grid cannot be read"):
        read_image(path)


def test_a_new_format_works_on_the_command_line(grids):
    out = grids / "out"
    run("segment", grids / "images", "--out", out, "--model", "otsu")
    found = read_labels(out / "cell2_labels.tif")
    assert found.shape == (96, 112) and found.max() >= 4
    # the same result as from a TIFF; labels in the new format are the truth of an evaluation
    pixels = read_image(grids / "images" / "cell2.grid").pixels
    write_image(grids / "tiff" / "cell2.tif", pixels, "YX")
    run("segment", grids / "tiff", "--out", grids / "same", "--model", "otsu")
    np.testing.assert_array_equal(read_labels(grids / "same" / "cell2_labels.tif"), found)
    run("evaluate", "--truth", grids / "masks", "--pred", out, "--json", grids / "scores.json")
    assert "cell2" in (grids / "scores.json").read_text()


def test_a_module_among_the_formats_is_found_by_itself(tmp_path):
    (tmp_path / "grid.py").write_text(
        "from cellseg_nb.data.formats.base import Format, register_format\n"
        "class Grid(Format):\n"
        "    suffixes = ('.grid',)\n"
        "register_format(Grid())\n"
    )
    code = (
        "import sys, cellseg_nb.data.formats as formats\n"
        f"formats.__path__.append({str(tmp_path)!r})\n"
        "from cellseg_nb.data.io import IMAGE_SUFFIXES\n"
        "print(list(IMAGE_SUFFIXES), 'tifffile' in sys.modules, 'zarr' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{[*SUFFIXES, '.grid']} False False"
