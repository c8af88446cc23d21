"""Numbers of marks: what is right, what is refused, and what bad input is told."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from cellseg_nb.data.io import read_labels, write_image, write_labels
from cellseg_nb.data.simulate_grids import draw_marks, simulate_grid
from cellseg_nb.run.cli import app
from cellseg_nb.segment.grid import register_mask, register_points
from cellseg_nb.segment.grid_window import Anchor
from cellseg_nb.segment.lattice import GridRefused

WRONG = [(59, 60), (61, 60), (60, 59), (60, 61), (61, 59), (30, 120), (1, 1), (3600, 1), (60, 9000)]


def numbers_are_right(sample, **how) -> bool:
    found = register_points(sample.points, sample.rows, sample.cols, **how)
    mark = sample.row > 0
    return bool((found.ids == sample.ids)[mark].all())


@pytest.mark.parametrize(
    "how",
    [
        dict(angle_deg=44, missing=0.2, specks=500),
        dict(angle_deg=-44, missing=0.6, specks=500),
        dict(angle_deg=10, missing=0.2, specks=2000),
        dict(missing=0.2, missing_rows=(7,), missing_cols=(40,), specks=500),
        dict(missing=0.2, blank_radius=15, specks=500),
        dict(angle_deg=-5, missing=0.8),
        dict(angle_deg=5, missing=0.2, shear=0.08, aspect=1.5, specks=500),
        dict(rows=200, cols=200, missing=0.2, specks=500),
        dict(rows=8, cols=12, missing=0.1, specks=3),
        dict(rows=5, cols=90, missing=0.1, specks=50),
    ],
    ids=lambda how: ", ".join(how),
)
def test_all_marks_get_their_number(how):
    for seed in range(2):
        assert numbers_are_right(simulate_grid(**({"rows": 60, "cols": 60, "jitter": 0.15, "seed": seed} | how)))


def test_wrong_sizes_are_refused():
    sample = simulate_grid(seed=3, angle_deg=20, jitter=0.15, missing=0.2, specks=500)
    for size in WRONG:
        with pytest.raises(GridRefused) as refused:
            register_points(sample.points, *size)
        assert refused.value.evidence["estimated_rows"] == 60
        assert "span 60 rows and 60 columns" in str(refused.value)


def test_exchanged_rows_and_columns_are_refused():
    sample = simulate_grid(32, 48, seed=3, jitter=0.1, missing=0.2, specks=100)
    with pytest.raises(GridRefused, match="48 rows and 32 columns"):
        register_points(sample.points, 48, 32)


def test_empty_border_is_refused_and_an_anchor_decides():
    sample = simulate_grid(20, 20, (900, 900), seed=1, jitter=0.1, specks=20, missing_rows=(1,), missing_cols=(20,))
    with pytest.raises(GridRefused, match="anchor|do not fit"):
        register_points(sample.points, 20, 20)
    one = np.flatnonzero(sample.ids)[5]
    where, at = sample.points[one], (int(sample.row[one]), int(sample.col[one]))
    assert numbers_are_right(sample, anchor=Anchor(*where, *at))
    with pytest.raises(GridRefused, match="the anchor does not fit"):
        register_points(sample.points, 20, 20, anchor=Anchor(*where, at[0] + 3, at[1]))
    with pytest.raises(ValueError, match="not in a grid of 20 x 20"):
        register_points(sample.points, 20, 20, anchor=Anchor(*where, 21, 1))
    with pytest.raises(GridRefused, match="outside of all marks|between marks"):
        register_points(sample.points, 20, 20, anchor=Anchor(1e7, 1e7, 1, 1))
    with pytest.raises(ValueError, match="more than 10,000,000 marks"):
        register_points(sample.points, anchor=Anchor(*where, 10**6, 10**6))


def test_size_is_estimated_and_the_summary_says_so():
    sample = simulate_grid(31, 47, seed=2, angle_deg=33, jitter=0.1, missing=0.3, specks=300)
    found = register_points(sample.points)
    assert (found.rows, found.cols, found.summary["size"]) == (31, 47, "estimated")
    half = register_points(sample.points, rows=31)
    assert (half.cols, half.summary["size"]) == (47, "estimated")


@pytest.mark.parametrize("kind", ["anywhere", "in clumps", "on a line", "on a ring"])
def test_points_without_a_grid_are_refused(kind):
    rng = np.random.default_rng(0)
    for _ in range(5):
        points = rng.uniform(0, 1000, (1500, 2))
        if kind == "in clumps":
            points = np.repeat(points[:80], 15, axis=0) + rng.normal(0, 8, (1200, 2))
        if kind == "on a line":
            points = np.column_stack([np.arange(300) * 7.0, np.arange(300) * 3.0])
        if kind == "on a ring":
            turn = np.arange(200) * 2 * np.pi / 200
            points = 500 + 400 * np.column_stack([np.sin(turn), np.cos(turn)])
        for size in ((None, None), (8, 12), (60, 60)):
            with pytest.raises(GridRefused):
                register_points(points, *size)


@pytest.mark.parametrize(
    "points, size, words",
    [
        (np.zeros((0, 2)), (8, 12), "at least 4"),
        (np.eye(2), (8, 12), "at least 4"),
        (np.full((9, 2), 3.0), (8, 12), "at least 4 different"),
        (np.array([[0, np.nan]] * 9), (8, 12), "9 of 9 points are NaN"),
        (np.zeros((9, 3)), (8, 12), r"shape \(9, 3\)"),
        (np.array([["a", "b"]] * 9), (8, 12), "points are numbers"),
        (np.eye(2)[np.zeros(9, int)], (0, 12), "rows is a whole number"),
        (np.eye(2)[np.zeros(9, int)], (8, -3), "cols is a whole number"),
        (np.eye(2)[np.zeros(9, int)], (10**6, 10**6), "at most 10,000,000"),
    ],
)
def test_bad_points_and_sizes_are_named(points, size, words):
    with pytest.raises(ValueError, match=words):
        register_points(points, *size)


def test_a_point_far_away_does_no_harm():
    sample = simulate_grid(20, 20, (900, 900), seed=1, jitter=0.1)
    far = np.concatenate([sample.points, [[1e7, -1e7], [900.0, 5e8]]])
    found = register_points(far, 20, 20)
    assert (found.ids[:-2] == sample.ids).all() and (found.states[-2:] == "outside").all()


def test_merged_and_broken_marks_of_a_mask():
    sample = simulate_grid(20, 24, (1000, 1200), seed=6, angle_deg=15, jitter=0.1, missing=0.15, specks=80, outside=5)
    labels, mask, changed = draw_marks(sample, merged=8, broken=8, seed=1)
    found, numbers = register_mask(mask, 20, 24)
    both = (labels > 0) & (numbers > 0)
    assert (numbers[both] == labels[both]).all() and both.sum() > 0.99 * (labels > 0).sum()
    status = found.marks.status[changed - 1]
    assert (status[:16] == "merged").all() and (status[16:] == "broken").all()
    for kind in (mask.astype(np.uint8), mask * np.uint8(255)):
        assert (register_mask(kind, 20, 24)[1] == numbers).all()
    assert (register_mask(labels, 20, 24)[1] == labels).all()


@pytest.mark.parametrize(
    "mask, words",
    [
        (np.zeros((50, 50), np.uint8), "empty"),
        (np.zeros((0, 0), np.uint8), "empty"),
        (np.ones((50, 50), np.uint8), "at least 4"),
        (np.ones((50, 50)), "float64"),
        (np.ones((50, 50, 3), np.uint8), "a colour picture is no mask"),
        (-np.ones((50, 50), int), "negative"),
    ],
    ids=["empty", "no pixels", "full", "float", "colour", "negative"],
)
def test_bad_masks_are_named(mask, words):
    with pytest.raises(ValueError, match=words):
        register_mask(mask, 8, 12)


def test_rows_between_rows_are_refused():
    sample = simulate_grid(20, 20, (900, 900), seed=4, jitter=0.05, pitch_px=40)
    row = sample.points[sample.row == 9]
    for shift, words in {(20, 0): "halfway between the rows 9 and 10", (15, 15): "no place of their own"}.items():
        twice = row + shift  # rows were scanned again, beside the first ones
        points = np.concatenate([sample.points, twice, twice + [120, 0], twice + [200, 0]])
        with pytest.raises(GridRefused, match=words):
            register_points(points, 20, 20, np.full(len(points), 250.0))
    assert register_points(sample.points, 20, 20).rows == 20


def test_half_a_grid_and_staggered_ones_are_refused():
    nodes = simulate_grid(40, 40, (900, 900), seed=5, jitter=0.03, pitch_px=20)
    gap = nodes.points[(nodes.col < 19) | (nodes.col > 22)]
    for size in [(None, None), (40, 18)]:
        with pytest.raises(GridRefused, match="marks lie at places outside"):
            register_points(gap, *size)
    assert register_points(gap, 40, 40).cols == 40
    checkerboard = nodes.points[(nodes.row + nodes.col) % 2 == 0]
    with pytest.raises(GridRefused, match="corners"):
        register_points(checkerboard)
    bowed = nodes.points - 450
    bowed = 450 + bowed * (1 + 0.08 * (bowed**2).sum(1, keepdims=True) / 450**2)
    with pytest.raises(GridRefused):
        register_points(bowed, 40, 40)


def test_an_anchor_that_is_off_by_one_is_refused():
    nodes = simulate_grid(40, 40, (900, 900), seed=6, jitter=0.03, pitch_px=20)
    thin = nodes.points[(nodes.row > 1) | (np.arange(len(nodes.row)) % 5 < 2)]
    y, x = nodes.points[(nodes.row == 2) & (nodes.col == 1)][0]
    with pytest.raises(GridRefused, match="anchor does not fit"):
        register_points(thin, 40, 40, anchor=Anchor(y, x, 1, 1))
    assert register_points(thin, 40, 40, anchor=Anchor(y, x, 2, 1)).rows == 40


def test_command_writes_five_files_and_names_errors(tmp_path):
    sample = simulate_grid(20, 24, (500, 600), seed=2, angle_deg=-12, jitter=0.08, missing=0.15)
    labels, mask, _ = draw_marks(sample)
    files = {"mask.png": mask.astype(np.uint8) * 255, "ids.tif": labels}
    for name, pixels in files.items():
        write_labels(tmp_path / name, pixels)
        line = ["marks", "register", tmp_path / name, "--rows", 20, "--cols", 24, "--out", tmp_path / "out"]
        done = CliRunner().invoke(app, [*map(str, line)])
        assert done.exit_code == 0, done.output
        stem = name.split(".")[0]
        assert (read_labels(tmp_path / "out" / f"{stem}_labels.tif") == labels).all()
        table = pd.read_csv(tmp_path / "out" / f"{stem}_marks.csv")
        assert len(table) == 480 and table.residual_px.max() < 8
        quality = json.loads((tmp_path / "out" / f"{stem}_quality.json").read_text(encoding="utf-8"))
        assert quality["found"] + quality["ambiguous"] == len(sample.ids) and quality["ambiguous"] < 3
    write_image(tmp_path / "photo.png", np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8), "YXC")
    write_image(tmp_path / "float.tif", np.random.default_rng(0).random((60, 60), np.float32), "YX")
    for name, words in {"photo.png": "colour picture", "float.tif": "float32", "none.png": "there is no file"}.items():
        done = CliRunner().invoke(app, ["marks", "register", str(tmp_path / name), "--out", str(tmp_path / "no")])
        assert done.exit_code == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "no").exists()
