"""Small wrong changes to the code, one at a time, and whether the tests of the same notebook notice them.

    python tests/experiments/mutants.py [--only TEXT ...] [--seconds 300]

Each change is made in a copy of the repository, in the notebook and in its module. Cells that need data sets are left out.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import copy_house  # noqa: E402


class Mutant(NamedTuple):
    """A wrong change."""

    notebook: str  # below nbs/, without its ending
    old: str  # of one line; stands once in the notebook
    new: str
    what: str


MUTANTS = [
    Mutant("segment/01_watershed", "distance - boundary_weight * boundary", "distance - 0 * boundary",
           "outlines ignored, with a distance map"),
    Mutant("segment/01_watershed", "landscape -= boundary_weight *", "landscape -= 0 *",
           "outlines ignored, without a distance map"),
    Mutant("measure/00_matching", "if threshold > Fraction(1, 2):", "if threshold >= Fraction(1, 2):",
           "two partners at IoU one half"),
    Mutant("segment/12_image", "area_px * scale**2", "area_px * scale", "smallest area by the factor, not its square"),
    Mutant("segment/12_image", "    if scales[0] != 1:", "    if False:",
           "labels of an enlarged picture stay enlarged"),
    Mutant("train/07_count", 'count_errors(rows["truth"], rows["predicted"])', 'count_errors(rows["truth"], rows["truth"])',
           "the truth compared with itself"),
    Mutant("data/04_transforms", "return bent * factor + shift", "return bent + shift", "no change of contrast"),
    Mutant("measure/01_overlap", "np.log2(pred_areas[pred_index] / pixels)", "np.log2(truth_areas[truth_index] / pixels)",
           "merges measured as splits"),
    Mutant("measure/02_objects", "np.prod(np.multiply(shape, edges) / 1000)", "np.prod(np.multiply(shape, edges)) / 1000",
           "µm² taken for thousandths of mm²"),
    Mutant("measure/02_objects", "values == length - 1 for", "values == length for", "the far border is no border"),
    Mutant("measure/05_intervals", "[(1 - level) / 2, (1 + level) / 2]", "[1 - level, level]",
           "an interval of 90 % for 95 %"),
    Mutant("measure/06_points", "difference.std(ddof=1)", "difference.std()", "standard deviation by n, not n - 1"),
    # and others
    Mutant("measure/00_matching", "10 * shared >= largest[group]", "2 * shared >= largest[group]",
           "more parts are specks"),
    Mutant("measure/00_matching", "min(n_rows, n_columns) + 3.0", "3.0", "good pairs before most pairs"),
    Mutant("measure/05_intervals", "if len(per_image) > 1", "if len(per_image) > 2", "no interval of two images"),
    Mutant("measure/06_points", "tail = (1 - confidence) / 2", "tail = 1 - confidence", "one-sided interval"),
    Mutant("measure/06_points", '1 - near["v"] / radius_px', 'near["v"] / radius_px', "far partners before near ones"),
    Mutant("data/26_contrast", "np.partition(near, -2, axis=0)[-2]", "near.max(axis=0)", "hot pairs of pixels stay"),
    Mutant("data/26_contrast", "max(noise_level(image), step / 12**0.5)", "noise_level(image)", "no noise of rounding"),
    Mutant("data/26_contrast", "USUAL_CEILING * things if foreign", "MOST_CEILING * things if foreign",
           "a ceiling too high"),
    Mutant("data/26_contrast", "dark + max(height, rise)", "dark + height", "noise stretched to full contrast"),
    Mutant("data/04_transforms", "(near[n] > best) == ((z + y + x) % 2 == 0)", "near[n] > best", "larger ids grow"),
    Mutant("data/04_transforms", "fraction if far else 1 - fraction", "1 - fraction if far else fraction",
           "labels weighed the wrong way"),
    Mutant("data/04_transforms", "round(size_px / factor)", "round(size_px * factor)",
           "shrunk where enlarged was asked for"),
    Mutant("data/23_masks", "radius / 4)", "radius)", "objects far apart are pieces of one"),
    Mutant("data/23_masks", "SPECK * largest[owner[1:]]", "SPECK * largest.max()",
           "small objects are specks beside large ones"),
    Mutant("data/15_heatmaps", "return first, values / values.sum()", "return first, values / (sigma * np.sqrt(2 * np.pi))",
           "mass lost at the border"),
    Mutant("models/01_losses", "step_px**2 * F.avg_pool2d", "step_px * F.avg_pool2d",
           "cells of a block divided by its edge"),
    Mutant("models/01_losses", "/ weights.sum().clamp_min(1e-6)", "/ weights.numel()",
           "what is left out counts in the mean"),
    Mutant("models/05_specification", "half if np.isfinite(half).all() else array.astype(np.float32)", "half",
           "large weights saved as infinite"),
    Mutant("segment/14_familiarity", "here = diameter_px * wider / scale", "here = diameter_px * wider",
           "advice in pixels of the enlarged picture"),
    Mutant("segment/14_familiarity", "* (1 + FEW / len(points))", "", "few pictures trusted like many"),
    Mutant("segment/05_partition", "share >= share[half] / 2", "share >= 0", "a beta at which most walls are gone"),
    Mutant("segment/05_partition", "share[half] > 0.5 and broken", "broken", "few walls are taken for closed"),
    Mutant("segment/05_partition", ".min(axis=1, initial=np.inf)", ".max(axis=1, initial=0)",
           "triangles weighed by their largest contact"),
    Mutant("segment/11_count", "[len(reach) - rank]", "[len(reach) - rank - 1]", "lower end one residual too low"),
    Mutant("segment/07_cleanup", "kept &= measures[name] <= (", "kept &= measures[name] < (",
           "objects at the limit removed"),
    Mutant("train/10_callbacks", "loss < best * (1 - LEAST_GAIN)", "loss < best", "any gain postpones the step down"),
    Mutant("train/05_tune", "if new > best_score:", "if new >= best_score:", "settings drift without a gain"),
    Mutant("train/07_count", '"truth": truth, "predicted": counts})', '"truth": truth, "predicted": truth})',
           "the truth for the count, in the table of a training"),
    Mutant("train/07_count", "truth, float(counts.mean()), float(counts.std())", "truth, float(truth), float(counts.std())",
           "the truth for the count, in the table of left-out pictures"),
    Mutant("train/07_count", "height = 1 / (2 * math.pi * sigma_px**2)", "height = 1 / (2 * math.pi * sigma_px)",
           "height of a spot without the square"),
    Mutant("run/20_records", "if checksum == _sealed(json.dumps(record)):", "if checksum is not None:",
           "edited records believed"),
    Mutant("run/20_records", "if path.is_file() and not path.stat().st_size:", "if False:", "empty tables are whole"),
    Mutant("run/03_evaluate", '"count_mae": float(np.mean([abs(one.n_pred - one.n_truth)', '"count_mae": float(np.mean([(one.n_pred - one.n_truth)',
           "count errors cancel out"),
    Mutant("run/02_report", "values.max() >= edges[-1])", "values.max() > edges[-1])",
           "a value at the end is not said to lie in the last bar"),
    Mutant("run/09_card", "tolerance * max(1.0, abs(before))", "tolerance", "large numbers compared to the last digit"),
]
OWN = ("PYTHONPATH", "CELLSEG_DATA", "NBDEV_TEST")  # variables that are not handed on


def files_of(root: Path, notebook: str) -> tuple[Path, Path]:
    """A notebook and its module."""
    module = re.sub(r"(^|/)\d+_", r"\1", notebook)
    return root / "nbs" / f"{notebook}.ipynb", root / "cellseg_nb" / f"{module}.py"


def changed(root: Path, mutant: Mutant) -> dict[Path, str]:
    """Both files and what they become; an error names a text that is not there, or not once."""
    found = {}
    for path, quoted in zip(files_of(root, mutant.notebook), (True, False)):
        old, new = (json.dumps(one, ensure_ascii=False)[1:-1] if quoted else one for one in mutant[1:3])
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise SystemExit(f"error: {path.relative_to(root)} has {text.count(old)} times, not once: {mutant.old}")
        found[path] = text.replace(old, new)
    compile(found[path], str(path), "exec")
    return found


def passes(root: Path, notebook: str, seconds: float) -> bool:
    """Run the tests of one notebook."""
    nbdev_test = Path(sys.executable).parent / "nbdev_test"
    command = [nbdev_test, "--path", files_of(root, notebook)[0], "--n_workers", "1"]
    light = {"PYTHONPATH": str(root), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    variables = {name: value for name, value in os.environ.items() if name not in OWN} | light
    try:
        done = subprocess.run(command, cwd=root, env=variables, capture_output=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def is_caught(root: Path, mutant: Mutant, seconds: float) -> bool:
    """Make a change, run the tests, and take it back."""
    files = changed(root, mutant)
    with tempfile.TemporaryDirectory() as folder:
        kept = {path: shutil.copy2(path, Path(folder) / path.name) for path in files}
        try:
            for path, text in files.items():
                path.write_text(text, encoding="utf-8")
            return not passes(root, mutant.notebook, seconds)
        finally:
            for path, copy in kept.items():
                shutil.copy2(copy, path)  # with its time, so that what was compiled of it stays valid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=[""], help="notebooks with one of these texts in their names")
    parser.add_argument("--seconds", type=float, default=300, help="for the tests of one notebook")
    options = parser.parse_args()
    chosen = [one for one in MUTANTS if any(text in one.notebook for text in options.only)]
    started, caught = time.time(), 0
    with tempfile.TemporaryDirectory() as folder:
        root = copy_house(Path(folder))
        for one in chosen:
            changed(root, one)
        for notebook in sorted({one.notebook for one in chosen}):
            if not passes(root, notebook, options.seconds):
                sys.exit(f"error: the tests of nbs/{notebook}.ipynb fail before anything is changed")
        print("| notebook | change | tests |\n| --- | --- | --- |", flush=True)
        for one in chosen:
            noticed = is_caught(root, one, options.seconds)
            caught += noticed
            print(f"| {one.notebook} | {one.what} | {'caught' if noticed else '**survived**'} |", flush=True)
    print(f"\n{caught} of {len(chosen)} caught, in {(time.time() - started) / 60:.0f} min")
    sys.exit(caught < len(chosen))


if __name__ == "__main__":
    main()
