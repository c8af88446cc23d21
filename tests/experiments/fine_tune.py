"""Fine-tuning from `nuclei` beside training from scratch, on 5 and on 20 pictures of another kind.

`python tests/experiments/fine_tune.py [--quick] [--out DIR] [KEY=VALUE ...]`

The pictures are those of dsb2018 of kind purple_on_white: stained sections, nuclei dark on a bright background. They are
turned into negatives (`normalisation.invert`). Both trainings have the same network, pictures and number of steps; from
scratch the learning rate is larger, and the same for all layers. The scores are those of the 5 test pictures of this kind,
pooled over their objects: a small sample, so the scores of each picture are printed as well. `--quick` takes about 15 minutes
on two cores, without it about an hour. The same call again goes on where it was interrupted.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from cellseg_nb.data.catalog import locate, samples
from cellseg_nb.models.bundle import load_bundle
from cellseg_nb.train.finish import pooled_scores, score_samples, score_table
from cellseg_nb.train.learner import train
from cellseg_nb.train.recipes.maps import TrainConfig
from cellseg_nb.train.settings import read_config

KIND = "purple_on_white"
EPOCHS, CROPS, QUICK_CROPS = 5, 2400, 400
FROM_SCRATCH = {"learning_rate": 0.002, "encoder_rate": 1.0}


def configurations(n_pictures: int, quick: bool, changes: list[str]) -> dict[str, TrainConfig]:
    """The two trainings; equal but for the start and the learning rates."""
    settings = {
        "data.images": n_pictures,
        "training.epochs": EPOCHS,
        "training.crops_per_epoch": QUICK_CROPS if quick else CROPS,
        "training.early_stopping": "null",
    }
    lines = [f"{key}={value}" for key, value in settings.items()]
    tuned = read_config("nuclei-tissue", [*lines, *changes])
    training = tuned.training.model_copy(update=FROM_SCRATCH)
    scratch = tuned.model_copy(update={"start_from": None, "training": training})
    return {"from scratch": scratch, "from nuclei": tuned}


def row(n_pictures: int, start: str, bundle, test: list, minutes: float | None = None) -> str:
    """One row of the table."""
    scored = score_samples(bundle, test)
    scores = pooled_scores(score_table(scored))
    each = " ".join(f"{one.matching.ap[0]:.2f}" for one in scored)
    spent = "" if minutes is None else f"{minutes:.1f}"
    return f"{n_pictures:>8}  {start:<20} {scores['AP@.5']:6.3f} {scores['mean AP']:8.3f}  {each:<24} {spent:>7}"


def inverted(bundle):
    """The same model, for dark objects."""
    specification = bundle.specification
    normalisation = specification.normalisation.model_copy(update={"invert": True})
    return replace(bundle, specification=specification.model_copy(update={"normalisation": normalisation}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, about 15 minutes")
    parser.add_argument("--out", type=Path, default=Path("runs/fine_tune"), help="folder of the runs")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="other settings, for both")
    chosen = parser.parse_args()
    if locate("dsb2018") is None:
        print("left out: the data set dsb2018 is not here (cellseg data get dsb2018)")
        return
    test = samples("dsb2018", split="test", kind=KIND)
    nuclei = load_bundle("nuclei")
    rows = [row(0, "nuclei as it is", nuclei, test), row(0, "nuclei on negatives", inverted(nuclei), test)]
    for n_pictures in (5, 20):
        for start, config in configurations(n_pictures, chosen.quick, chosen.changes).items():
            print(f"{n_pictures} pictures, {start}", flush=True)
            out = chosen.out / f"{n_pictures}_{start.replace(' ', '_')}"
            started = time.perf_counter()
            model = train(config, out, resume=(out / "config.yml").is_file(), force=True)
            minutes = (time.perf_counter() - started) / 60
            rows.append(row(n_pictures, start, load_bundle(model), test, minutes))
    n_nuclei = sum(len(np.unique(labels[labels > 0])) for labels in (sample.labels() for sample in test))
    print(f"\n{len(test)} test pictures of kind {KIND} with {n_nuclei} nuclei; scores are pooled over them")
    print(f"{'pictures':>8}  {'start':<20} {'AP@.5':>6} {'mean AP':>8}  {'AP@.5 of each picture':<24} minutes")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
