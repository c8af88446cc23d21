"""ND2 with a real file: read whole and by region with its pixel sizes, and segmented."""

import numpy as np
import pandas as pd
import pytest
from nd2_writer import write_nd2
from typer.testing import CliRunner

from cellseg_nb.data.germline import simulate_germline
from cellseg_nb.data.io import open_plane, read_image, read_labels
from cellseg_nb.data.volumes import open_stack, read_stack
from cellseg_nb.run.cli import app

nd2 = pytest.importorskip("nd2", reason="reads the files of Nikon's microscopes: pip install 'cellseg_nb[nd2]'")
SIZE_UM = (0.5, 0.2, 0.2)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A simulated germline with membranes and nuclei: the file, and its pixels (C, Z, Y, X)."""
    pixels = simulate_germline((16, 80, 96), seed=1)[0]
    pixels = (pixels / pixels.max() * 4000).astype(np.uint16)
    path = tmp_path_factory.mktemp("nikon") / "germline.nd2"
    return write_nd2(path, np.moveaxis(pixels, 0, 1), SIZE_UM), pixels


def test_an_image_has_its_axes_sizes_and_channels(stack):
    path, pixels = stack
    image = read_image(path)
    assert (image.axes, image.pixels.dtype, image.channels) == ("ZCYX", np.uint16, ["membranes", "nuclei"])
    np.testing.assert_allclose(image.pixel_size_um, SIZE_UM)
    np.testing.assert_array_equal(image.pixels, np.moveaxis(pixels, 0, 1))
    np.testing.assert_array_equal(read_stack(path, channel="nuclei").pixels, pixels[1])


def test_it_is_read_by_region(stack, monkeypatch):
    path, pixels = stack
    read, frame = [], nd2.ND2File.read_frame
    monkeypatch.setattr(nd2.ND2File, "read_frame", lambda self, number: read.append(number) or frame(self, number))
    with open_stack(path, channel="membranes") as volume:
        assert volume.shape == (16, 80, 96) and volume.pixel_size_um == pytest.approx(SIZE_UM)
        np.testing.assert_array_equal(volume[3:5, 10:20, 30:70], pixels[0, 3:5, 10:20, 30:70])
    assert sorted(set(read)) == [3, 4]
    with open_plane(path, channel=1, z="max") as plane:
        np.testing.assert_array_equal(plane.read(5, 9, 40, 50), pixels[1, :, 5:9, 40:50].max(axis=0))


def test_segment3d_uses_its_pixel_sizes(stack, tmp_path):
    path, _ = stack
    arguments = ["segment3d", str(path), "--channel", "membranes", "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    labels = read_labels(next((tmp_path / "out").rglob("germline_labels*")))
    assert labels.shape == (16, 80, 96) and labels.max() > 3
    objects = pd.read_csv(tmp_path / "out" / "cells.csv")
    voxel = np.prod(SIZE_UM)
    sizes = np.bincount(labels.ravel())[1:]
    np.testing.assert_allclose(sorted(objects["volume_um3"]), sorted(sizes[sizes > 0] * voxel), rtol=1e-3)


def test_a_broken_file_is_named(stack, tmp_path):
    path = tmp_path / "cut.nd2"
    path.write_bytes(stack[0].read_bytes()[:5000])
    with pytest.raises(ValueError, match="cut.nd2"):
        read_image(path)
