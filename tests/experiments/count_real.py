"""Counts of real cells by several models, side by side: `python tests/experiments/count_real.py [MODEL…]`.

CELLSEG_DATA names a folder that holds `dsb2018`, `phase_cells` and, in `counting`, `chula_rbc`, `bccd` and `phase_contrast`.
Each kind of picture has a row for each model: the mean error of its counts (MAE), their bias, the error of who always guesses the
mean count of the training pictures of that kind, F1 of the places within half the diameter of a cell, the share of
pictures that get an interval, how many of these hold the truth, and how wide they are.

`--part validation` counts the pictures that `count-cells` set aside when it was trained. Whatever is chosen is chosen there. `--part test`
is for reporting, once; counts that are in the folder of the tables are not made again. Nothing of `counting/phase_contrast` (two pictures) was used for training.
"""

from __future__ import annotations

import argparse
import time
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from cellseg_nb.data.catalog import samples
from cellseg_nb.measure.points import count_errors, interval_scores, match_points
from cellseg_nb.models.bundle import load_bundle
from cellseg_nb.segment.count import count_image
from cellseg_nb.train.count_pictures import CountPicture, count_pictures, read_count_pictures
from cellseg_nb.train.recipes.count import CountDataSettings
from cellseg_nb.train.settings import read_config

DIAMETER_PX = {"chula_rbc": 70.0, "bccd": 100.0, "phase_contrast": 24.0, "simulated-phase-contrast": 16.0}
LABELLED = ("dsb2018", "phase-cells")


@cache
def diameters(dataset: str) -> dict[str, float]:
    """Name of a picture with labels → median diameter of its objects; px."""
    found = {}
    for one in samples(dataset):
        areas = np.bincount(one.labels().ravel())[1:]
        found[one.name] = 2 * float(np.sqrt(np.median(areas[areas > 0]) / np.pi)) if areas.any() else 20.0
    return found


def diameter_px(picture: CountPicture) -> float:
    """How wide the cells of a picture are; px."""
    known = DIAMETER_PX.get(picture.kind)
    return known or diameters(picture.kind.partition("/")[0])[picture.name]


def chosen_pictures(part: str) -> tuple[list[CountPicture], dict[str, float]]:
    """Pictures to count, and for each kind the mean count of its training pictures."""
    parts = read_count_pictures(read_config("count-cells"))
    kinds = pd.Series([len(one.points) for one in parts.train]).groupby([one.kind for one in parts.train])
    if part == "validation":
        return parts.validation, kinds.mean().to_dict()
    classes = {"bccd": ("RBC", "WBC")}
    tests = CountDataSettings(dataset=(*LABELLED, "chula_rbc", "bccd"), split="test", point_classes=classes)
    foreign = count_pictures(CountDataSettings(dataset="phase_contrast", split=None))
    mean = {"phase_contrast": float(np.mean([len(one.points) for one in foreign]))}
    return [*count_pictures(tests), *foreign], kinds.mean().to_dict() | mean


def count_all(pictures: list[CountPicture], model: str, kept: Path) -> pd.DataFrame:
    """A row for each picture: truth, count, interval, and how many places were found; read back if it is there."""
    if kept.is_file():
        return pd.read_csv(kept, dtype={"image": str})
    bundle, rows = load_bundle(model), []
    for one in pictures:
        began = time.process_time()
        found = count_image(one.image, bundle)
        seconds = time.process_time() - began
        hits = match_points(one.points, found.points, diameter_px(one) / 2).tp
        rows.append(
            {"model": Path(model).name, "kind": one.kind, "image": one.name, "truth": len(one.points)}
            | {
                "predicted": found.count,
                "low": found.low,
                "high": found.high,
                "n_points": len(found.points),
                "hits": hits,
                "seconds": seconds,
                "megapixels": one.image.shape[0] * one.image.shape[1] / 1e6,
            }
            | {"unlike": bool(found.unlike and found.unlike.unusual), "taken_for": found.kind, "why": found.why}
        )
    kept.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).round(3).to_csv(kept, index=False)
    return pd.DataFrame(rows)


def scores(rows: pd.DataFrame, means: dict[str, float]) -> pd.DataFrame:
    """A row for each kind and model, and one for all kinds."""
    table = []
    groups = [
        *rows.groupby(["kind", "model"], sort=False),
        *((("all", key), one) for key, one in rows.groupby("model")),
    ]
    for (kind, model), each in groups:
        errors, known = count_errors(each["truth"], each["predicted"]), each[each["low"].notna()]
        guess = (each["truth"] - each["kind"].map(means)).abs().mean()
        row = {"kind": kind, "model": model, "pictures": len(each), "cells": int(each["truth"].sum())}
        row |= {"MAE": errors["mae"], "bias": errors["bias"], "mean guess": guess}
        row |= {
            "F1": 2 * each["hits"].sum() / (each["truth"] + each["n_points"]).sum(),
            "with interval": len(known) / len(each),
            "s/Mpx": each["seconds"].sum() / each["megapixels"].sum(),
        }
        if len(known):
            held = interval_scores(known["truth"], known["low"], known["high"])
            row |= {"coverage": held["coverage"], "median width": held["median_width"]}
        table.append(row | {"unlike": each["unlike"].mean()})
    return pd.DataFrame(table).round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["count-cells"], help="names or folders of models that count")
    parser.add_argument("--part", choices=["validation", "test"], default="validation")
    parser.add_argument("--out", type=Path, default=Path("runs/count_real"), help="folder of the tables")
    chosen = parser.parse_args()
    started = time.monotonic()
    pictures, means = chosen_pictures(chosen.part)
    kept = [chosen.out / f"{chosen.part}_{Path(model).name}.csv" for model in chosen.models]
    rows = [count_all(pictures, model, path) for model, path in zip(chosen.models, kept)]
    table = scores(pd.concat(rows, ignore_index=True), means)
    table.to_csv(chosen.out / f"{chosen.part}_scores.csv", index=False)
    print(table.to_string(index=False))
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
