"""Patches by key and one's own training: what is read, the same with any number of workers, and a model that segments."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from cellseg_nb.data.germline import simulate_germline
from cellseg_nb.data.io import Plane, read_labels, write_image, write_labels
from cellseg_nb.models.losses import BCEDiceLoss
from cellseg_nb.models.unet3d import UNet3D
from cellseg_nb.run.cli import app
from cellseg_nb.train.own_training import fit
from cellseg_nb.train.patches import StackPatches


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Three stacks of two channels, of which the last does not train."""
    folder = tmp_path_factory.mktemp("stacks")
    rows = ["images;masks;train"]
    for n, word in enumerate(("yes", "TRUE", "0")):
        image, cells = simulate_germline((16, 64, 72), seed=n)
        write_image(folder / f"{n}.ome.tif", np.moveaxis(image, 0, 1), "ZCYX", (0.5, 0.2, 0.2), ["membranes", "nuclei"])
        write_labels(folder / "masks" / f"{n}.tif", cells)
        rows.append(f"{n}.ome.tif;masks/{n}.tif;{word}")
    path = folder / "stacks.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_nothing_but_the_patch_is_read(table, monkeypatch):
    asked, read = [], Plane.read
    monkeypatch.setattr(Plane, "read", lambda self, *window: asked.append(window) or read(self, *window))
    patches = StackPatches(table, (4, 20, 24), normalisation=None, length=5, seed=1)
    for number in range(5):
        one = patches[number]
        assert one["image"].shape == (2, 4, 20, 24) and one["mask"].shape == (1, 4, 20, 24)
    assert len(asked) == 5 * 2 * 4  # planes of two channels
    assert all((y1 - y0, x1 - x0) == (20, 24) for y0, y1, x0, x1 in asked)


def lighter(item):
    return item | {"image": item["image"] + torch.rand(())}


def test_transforms_of_monai_are_the_same_with_any_number_of_workers(table):
    monai = pytest.importorskip("monai.transforms", reason="MONAI is not installed")
    changes = [
        monai.RandFlipd(["image", "mask"], prob=0.5, spatial_axis=2),
        monai.RandGaussianNoised(["image"], prob=1.0, std=0.1),
        lighter,
    ]
    made = [StackPatches(table, (8, 32, 32), changes, length=6, seed=4, channel="membranes") for _ in range(2)]
    alone, several = DataLoader(made[0], 2), DataLoader(made[1], 2, num_workers=2, multiprocessing_context="spawn")
    for here, there in zip(alone, several, strict=True):
        assert torch.equal(here["image"], there["image"]) and torch.equal(here["mask"], there["mask"])
        assert type(here["image"]) is torch.Tensor and here["image"].dtype == torch.float32
    assert not torch.equal(made[0][0]["image"], made[0][1]["image"])


def test_ones_own_training_gives_a_model_for_stacks(table, tmp_path):
    how = {"targets": ("edges", "foreground"), "channel": "membranes", "weights": True}
    left = DataLoader(StackPatches(table, (8, 32, 32), train=True, length=4, **how), batch_size=2)
    aside = DataLoader(StackPatches(table, (8, 32, 32), train=False, **how), batch_size=4)
    torch.manual_seed(0)
    network = UNet3D(1, 2, f_maps=8, levels=2)
    trained = fit(
        network, (left, aside), BCEDiceLoss(), epochs=1, weights="weight_map", out=tmp_path / "run", device="cpu"
    )
    model = trained.save(tmp_path / "walls", "walls", licence="CC0-1.0", pixel_size_um=(0.5, 0.2, 0.2))
    line = ["segment3d", str(Path(table).parent / "2.ome.tif"), "--channel", "membranes", "--model", str(model)]
    done = CliRunner().invoke(app, [*line, "--out", str(tmp_path / "out"), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert read_labels(next((tmp_path / "out").glob("2_labels*"))).shape == (16, 64, 72)


def test_the_table_trains_by_command(table, tmp_path):
    """Rows of 0 choose the best epoch, whatever share is asked for."""
    line = [
        "train",
        "membranes3d",
        f"data.dataset={table}",
        "data.channel=membranes",
        "data.split=null",
        "training.epochs=1",
    ]
    line += ["training.crops_per_epoch=2", "training.crop_px=[8,32,32]", "network.f_maps=8", "network.levels=2"]
    line += ["training.device=cpu", "start_from=null", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, [one for one in line if "data.split" not in one])
    assert done.exit_code == 2 and "has no column split; leave data.split out, data.split=null" in done.output
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    rows = (tmp_path / "run" / "validation.csv").read_text().splitlines()
    assert len(rows) == 2 and rows[1].startswith("2,")
