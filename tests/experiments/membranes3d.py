"""How well the model for stacks finds the cells of simulated germlines that it never saw.

    python tests/experiments/membranes3d.py
    python tests/experiments/membranes3d.py runs/membranes3d/model --tune

Scores are of the test stacks. With --tune, the settings that turn its maps into cells are chosen on the
validation stacks first, and settings and scores are written into the model.json of the folder.
"""

from __future__ import annotations

import argparse
import time

from cellseg_nb.measure.matching import Matching, match, pool
from cellseg_nb.models.bundle import Bundle, StackPostprocessing, load_bundle, write_specification
from cellseg_nb.train.crops import stack_samples
from cellseg_nb.train.finish import cut_maps, predict_sample
from cellseg_nb.train.settings import StackDataSettings
from cellseg_nb.train.tune import mean_score, search

VALUES = {  # what is tried, in this order
    "sigma_seeds": (1.5, 2.0, 2.5, 3.0),
    "min_size": (100, 200, 300, 400),
    "threshold": (0.25, 0.35, 0.45, 0.55),
    "sigma_weights": (0.5, 1.0),
    "beta": (0.45, 0.5, 0.55, 0.6, 0.65, 0.7),
    "min_foreground": (0.2, 0.3, 0.4, 0.5),
}


def painted(bundle: Bundle, split: str, n_stacks: int | None) -> list[tuple]:
    """Maps, truth and voxel size of the simulated stacks of a split."""
    stacks = []
    for sample in stack_samples(StackDataSettings(split=split))[:n_stacks]:
        picture, maps = predict_sample(sample, bundle)
        stacks.append((maps, picture.labels, picture.pixel_size_um))
    return stacks


def matched(stacks: list[tuple], settings: dict) -> list[Matching]:
    """Cut the maps of every stack into cells, and match them with the truth."""
    return [match(truth, cut_maps(maps, settings, size)) for maps, truth, size in stacks]


def summary(matchings: list[Matching]) -> dict[str, float]:
    """Scores over all cells of all stacks."""
    whole = pool(matchings)
    scores = {"F1@.5": whole.f1[0], "AP@.5": whole.ap[0], "mean AP": whole.mean_ap}
    numbers = {"stacks": len(matchings), "cells": whole.n_truth, "found": whole.n_pred}
    return numbers | {name: round(float(value), 4) for name, value in scores.items()}


def tuned(bundle: Bundle, n_stacks: int | None) -> tuple[StackPostprocessing, dict[str, float]]:
    """Settings that are best on the validation stacks, and their scores there."""
    stacks = painted(bundle, "val", n_stacks)
    start = dict(bundle.specification.postprocessing)
    best = search(lambda settings: mean_score(matched(stacks, settings)), start, VALUES)
    return StackPostprocessing(**best), summary(matched(stacks, best))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="membranes3d", help="name or folder")
    parser.add_argument("--tune", action="store_true", help="choose settings, and write them down")
    parser.add_argument("--stacks", type=int, help="so many of each split; all when left out")
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.model)
    specification, scores = bundle.specification, dict(bundle.specification.scores)
    if arguments.tune:
        best, scores["validation, settings chosen"] = tuned(bundle, arguments.stacks)
        specification = specification.model_copy(update={"postprocessing": best})
        print("chosen:", best)
        print("validation:", scores["validation, settings chosen"])
    started = time.perf_counter()
    stacks = painted(bundle, "test", arguments.stacks)
    scores["test"] = summary(matched(stacks, dict(specification.postprocessing)))
    seconds = (time.perf_counter() - started) / len(stacks)
    print(f"test: {scores['test']}; {seconds:.1f} s per stack, its simulation included")
    if arguments.tune:
        update = {"scores": scores}
        write_specification(bundle.folder, specification.model_copy(update=update))


if __name__ == "__main__":
    main()
