"""How good is the shipped model of ablation marks, what does a data set become, and what do pseudo-labels bring?

`python tests/experiments/marks.py [--spread] [--show]`

Dice on simulated pictures that no training saw (pixels of all pictures of a row together), at full and at half scale, and on parts of samples as
they are drawn for the training, with other seeds. With the real data: Dice on the one real pair, at half scale, beside the prediction of its authors. Nothing was chosen by
that picture. `--show` makes a data set of two groups, goes from pictures to numbers by `cellseg marks run`, lists the folders, scores every number
against the truth, does it again, and breaks a group. `--spread` measures the gain of each round of pseudo-labels, over three simulated samples; ten minutes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from cellseg_nb.data.io import read_labels, read_pixels, write_image
from cellseg_nb.data.simulate_marks import random_marks, simulate_marks
from cellseg_nb.measure.overlap import pixel_counts, pool_pixels
from cellseg_nb.models.bundle import load_bundle
from cellseg_nb.segment.marks import find_marks

FIRST_SEED = 5_000_000


def never_seen(n: int = 6) -> dict:
    """Rows of simulated pictures: name → pictures with their masks."""
    rows = {}
    for matrix in ("DHB", "DAN"):
        how = {"matrix": matrix, "missing": 0.1, "jitter": 0.1}
        made = [
            simulate_marks((768, 768), 16, 16, seed=FIRST_SEED + number, angle_deg=number - 3, **how)
            for number in range(n)
        ]
        rows[f"{matrix}, full scale, 27 px"] = [(one.image, one.mask) for one in made]
        made = [
            simulate_marks((768, 768), 8, 8, seed=FIRST_SEED + 50 + number, angle_deg=number - 3, **how)
            for number in range(n)
        ]
        rows[f"{matrix}, full scale, 52 px"] = [(one.image, one.mask) for one in made]
        rows[f"{matrix}, half scale, 26 px"] = [(one.image[::2, ::2], one.mask[::2, ::2]) for one in made]
        rows[f"{matrix}, as in training"] = [
            random_marks(384, matrix, FIRST_SEED + 100 + number) for number in range(4 * n)
        ]
    return rows


def scores(bundle) -> pd.DataFrame:
    """Dice of each row, and of all together."""
    found, every = [], []
    for name, pictures in never_seen().items():
        counts = [pixel_counts(mask, find_marks(np.ascontiguousarray(image), bundle)) for image, mask in pictures]
        every += counts
        found.append((name, len(pictures), round(pool_pixels(counts).f1, 3)))
    found.append(("all", len(every), round(pool_pixels(every).f1, 3)))
    return pd.DataFrame(found, columns=["simulated, never seen", "pictures", "Dice"])


def real_pair(bundle) -> str:
    """Dice on the real pair, and that of its authors."""
    folder = Path(os.environ["CELLSEG_DATA"]) / "maldi"
    image, label, authors = (
        read_pixels(folder / f"fig_dhb_{name}.png") for name in ("input", "label", "unet_prediction")
    )
    ours = pixel_counts(label > 0, find_marks(image, bundle)).f1
    theirs = pixel_counts(label > 0, authors > 0).f1
    return f"real pair at half scale: Dice {ours:.3f}; its authors' network {theirs:.3f}"


def call(line: str) -> tuple[int, str]:
    """Run a command of cellseg; exit code, and what it printed."""
    started = time.perf_counter()
    code = "from cellseg_nb.run.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *line.split()], capture_output=True, text=True)
    print(
        f"$ cellseg {line}\n{done.stdout}{done.stderr}exit code {done.returncode}, {time.perf_counter() - started:.1f} s\n",
        flush=True,
    )
    return done.returncode, done.stdout


def score_numbers(dataset: Path, group: str) -> str:
    """How many marks have their number."""
    truth, numbers = (read_labels(dataset / place / group / f"{group}_labels.tif") for place in ("truth", "am_coords"))
    both = (numbers > 0) & (truth > 0)
    pairs = (
        pd.DataFrame({"found": numbers[both], "true": truth[both]}).value_counts().reset_index().drop_duplicates("true")
    )
    there, right = len(np.unique(truth)) - 1, int((pairs.found == pairs.true).sum())
    return f"{group}: {there} marks are there, {len(pairs)} found, {right} with their number, {len(pairs) - right} with another"


def show(model: str) -> None:
    """A data set of two groups, from pictures to numbers."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = Path(folder) / "set"
        line = f"marks run {dataset} --rows 30 --cols 30 --model {model}"
        call(f"data simulate marks --rows 30 --cols 30 --size 1500 --seed 70 --out {dataset}")
        call(line)
        for one in sorted(path for path in dataset.rglob("*") if path.is_dir() and ".resume" not in path.parts):
            print(f"{one.relative_to(dataset)}/  {len([path for path in one.iterdir() if path.is_file()])} files")
        print(*[score_numbers(dataset, group) for group in ("slide1", "slide2")], "", sep="\n")
        call(line)
        broken = dataset / "source/slide1/slide1.png"
        broken.write_bytes(broken.read_bytes()[:5000])
        call(f"{line} --tile-size 448")


def spread(n_samples: int = 3) -> pd.DataFrame:
    """Dice of each round on areas held out, for several samples: 2 drawn areas of 128 px, 6 pictures without labels."""
    from cellseg_nb.train.pseudo_labels import spread_labels
    from cellseg_nb.train.settings import read_config

    tables = []
    for sample in range(n_samples):
        with tempfile.TemporaryDirectory() as folder:
            made = [sample_area(sample, number) for number in range(12)]
            for number, (image, mask) in enumerate(made):
                group = Path(folder) / ("train" if number < 2 else "valid") / "drawn" / f"area{number}"
                if number < 6:
                    write_image(group / "source/0.png", np.ascontiguousarray(image[:128, :128]), "YX")
                    write_image(group / "mask/0.png", mask[:128, :128].astype(np.uint8) * 255, "YX")
                else:
                    write_image(Path(folder) / "source/all" / f"{number}.png", image, "YX")
            config = read_config("marks-few", [f"data.dataset={folder}"])
            table = spread_labels(
                config, Path(folder) / "source", Path(folder) / "out", 2, 128, 0.7, lambda text: print(text, flush=True)
            )
            tables.append(table.assign(sample=sample))
    return pd.concat(tables, ignore_index=True)


def sample_area(sample: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """A part of one sample: its look stays, its places change."""
    made = simulate_marks(
        (1024, 1024), 18, 18, ("DHB", "DAN")[sample % 2], missing=0.1, jitter=0.15, seed=FIRST_SEED + 500 + sample
    )
    y, x = divmod(number, 4)
    window = slice(256 * y, 256 * y + 256), slice(256 * x, 256 * x + 256)
    return np.ascontiguousarray(made.image[window]), np.ascontiguousarray(made.mask[window])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="marks", help="name of a model or its folder")
    parser.add_argument("--spread", action="store_true", help="measure rounds of pseudo-labels")
    parser.add_argument("--show", action="store_true", help="a data set from pictures to numbers")
    chosen = parser.parse_args()
    if chosen.show:
        return show(chosen.model)
    if chosen.spread:
        rows = spread()
        print(rows.to_string(index=False))
        print(rows.groupby("round")[["Dice", "gain"]].mean().round(3).to_string())
        return
    bundle = load_bundle(chosen.model)
    print(scores(bundle).to_string(index=False))
    print(real_pair(bundle) if os.environ.get("CELLSEG_DATA") else "real pair: needs CELLSEG_DATA")


if __name__ == "__main__":
    main()
