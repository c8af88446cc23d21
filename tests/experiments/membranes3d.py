"""How well the model for stacks finds the cells of stacks that it never saw, beside other models and a plain watershed.

    python tests/experiments/membranes3d.py
    python tests/experiments/membranes3d.py membranes3d runs/membranes3d-walls/model
    python tests/experiments/membranes3d.py runs/membranes3d-walls/model --tune

Scores are of the test stacks, germlines and walls of many kinds, and of the real cell walls of `volumes/ovule` where
CELLSEG_DATA names a folder that holds them; nothing was ever chosen on those. With --tune, the settings that turn the maps
of a model into cells are chosen on the simulated validation stacks first, and settings and scores are written into the
model.json of its folder. `--tune --only-validation` asks for no test stack.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from cellseg_nb.data.catalog import data_folder
from cellseg_nb.data.io import read_image, read_labels
from cellseg_nb.measure.matching import Matching, match, pool
from cellseg_nb.measure.overlap import adapted_rand, variation_of_information
from cellseg_nb.models.bundle import Bundle, StackPostprocessing, load_bundle, write_specification
from cellseg_nb.segment.stack import segment_stack
from cellseg_nb.segment.superpixels import h_minima_watershed
from cellseg_nb.train.crops import Picture, stack_samples
from cellseg_nb.train.finish import cut_maps, predict_sample
from cellseg_nb.train.settings import StackDataSettings
from cellseg_nb.train.tune import mean_score, search

KINDS = ("germline", "walls")
VOXEL_UM = (0.235, 0.15, 0.15)  # of the ovule
VALUES = {  # what is tried, in this order; a cell 8 voxels across has 270, so no piece of 100 is left to chance
    "threshold": (0.15, 0.25, 0.35, 0.45),
    "sigma_seeds": (1.0, 1.5, 2.0, 3.0),
    "beta": (0.4, 0.5, 0.6, 0.7, 0.8),
    "min_size": (30, 60, 100),
    "sigma_weights": (0.5, 1.0),
    "min_foreground": (0.05, 0.1, 0.2, 0.3),
}


def stacks(kind: str, split: str, most: int | None) -> list:
    """Samples of a kind of simulated stacks."""
    return stack_samples(StackDataSettings(dataset=f"simulated-{kind}", split=split))[:most]


def painted(bundle: Bundle, kind: str, split: str, most: int | None) -> list[tuple]:
    """Maps, truth and voxel size of the simulated stacks of a split."""
    found = []
    for sample in stacks(kind, split, most):
        picture, maps = predict_sample(sample, bundle)
        found.append((maps, picture.labels, picture.pixel_size_um))
    return found


def matched(stacks: list[tuple], settings: dict) -> list[Matching]:
    """Cut the maps of every stack into cells, and match them with the truth."""
    return [match(truth, cut_maps(maps, settings, size)) for maps, truth, size in stacks]


def summary(matchings: list[Matching]) -> dict[str, float]:
    """Scores over all cells of all stacks."""
    whole = pool(matchings)
    scores = {"F1@.5": whole.f1[0], "AP@.5": whole.ap[0], "mean AP": whole.mean_ap}
    numbers = {"stacks": len(matchings), "cells": whole.n_truth, "found": whole.n_pred}
    return numbers | {name: round(float(value), 4) for name, value in scores.items()}


def tuned(bundle: Bundle, most: int | None) -> tuple[StackPostprocessing, dict[str, dict]]:
    """Settings that are best on the validation stacks, where both kinds count alike, and their scores there."""
    maps = {kind: painted(bundle, kind, "val", most) for kind in KINDS}

    def score(settings):
        return float(np.mean([mean_score(matched(stacks, settings)) for stacks in maps.values()]))

    best = search(score, dict(bundle.specification.postprocessing), VALUES, rounds=1)
    scores = {f"validation, settings chosen, {kind}": summary(matched(one, best)) for kind, one in maps.items()}
    return StackPostprocessing(**best), scores


def plain(picture: Picture) -> np.ndarray:
    """Cells without any learning: Gaussian 1 px, and a watershed from hollows deeper than 2 of 255."""
    image = picture.image
    if image.dtype != np.uint8:
        low, high = np.percentile(image, (1, 99.8))
        image = np.rint(255 * np.clip((image - low) / (high - low), 0, 1)).astype(np.uint8)
    return h_minima_watershed(image, 1.0, 2 / 255, 0)


def by_model(bundle: Bundle) -> Callable[[Picture], np.ndarray]:
    """Cells as `cellseg segment3d` finds them."""
    return lambda picture: segment_stack(picture.image, bundle, pixel_size_um=picture.pixel_size_um).labels


def real_walls() -> Picture | None:
    """The ovule: None where it is not at hand."""
    folder = (data_folder() or "") and data_folder() / "volumes"
    if not folder or not (folder / "ovule_image.tif").exists():
        return None
    image = read_image(folder / "ovule_image.tif", axes="ZYX").pixels
    return Picture(image, read_labels(folder / "ovule_labels.tif"), pixel_size_um=VOXEL_UM)


def compared(name: str, find: Callable[[Picture], np.ndarray], most: int | None) -> dict[str, dict]:
    """Scores of one way to find cells, printed as they come."""
    print(name, flush=True)
    scores = {}
    for kind in KINDS:
        matchings, seconds = [], 0.0
        for sample in stacks(kind, "test", most):
            picture = sample.read()
            started = time.perf_counter()
            matchings.append(match(picture.labels, find(picture)))
            seconds += time.perf_counter() - started
        scores[kind] = summary(matchings) | {"s a stack": seconds / len(matchings)}
        print(f"  {kind:9} {scores[kind]}", flush=True)
    ovule = real_walls()
    if ovule is not None:
        started = time.perf_counter()
        found = find(ovule)
        seconds = time.perf_counter() - started
        split, merge = variation_of_information(ovule.labels, found, ignore_labels=(0,))
        error = adapted_rand(ovule.labels, found)[0]
        numbers = {"stacks": 1, "cells": len(np.unique(ovule.labels)) - 1, "found": int(found.max())}
        scores["ovule"] = numbers | {"VI": split + merge, "VI split": split, "VI merge": merge, "adapted Rand": error}
        scores["ovule"]["s a stack"] = seconds
        print(
            f"  ovule     VI {split + merge:.3f} (split {split:.3f}, merge {merge:.3f}), adapted Rand error {error:.3f}, "
            f"{numbers['found']} cells ({numbers['cells']} true), {seconds:.1f} s",
            flush=True,
        )
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["membranes3d"], help="names or folders")
    parser.add_argument("--tune", action="store_true", help="choose settings, and write them down")
    parser.add_argument("--only-validation", action="store_true", help="ask for no test stack")
    parser.add_argument("--out", type=Path, help="CSV file of the test scores; none when left out")
    parser.add_argument("--stacks", type=int, help="so many of each kind and split; all when left out")
    arguments = parser.parse_args()
    tests = {}
    if not arguments.only_validation:
        tests["plain watershed"] = compared("plain watershed", plain, arguments.stacks)
    for model in arguments.models:
        bundle = load_bundle(model)
        specification, scores = bundle.specification, dict(bundle.specification.scores)
        if arguments.tune:
            best, chosen = tuned(bundle, arguments.stacks)
            print("chosen:", best, chosen, flush=True)
            scores |= chosen
            specification = specification.model_copy(update={"postprocessing": best})
            bundle = replace(bundle, specification=specification)
        if not arguments.only_validation:
            found = compared(str(model), by_model(bundle), arguments.stacks)
            tests[Path(model).name] = found
            scores |= {"test": found["germline"], "test, walls": found["walls"]}
        if arguments.tune:
            write_specification(bundle.folder, specification.model_copy(update={"scores": scores}))
    if arguments.out:
        rows = [{"kind": kind, "method": name} | one for name, each in tests.items() for kind, one in each.items()]
        pd.DataFrame(rows).round(3).to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
