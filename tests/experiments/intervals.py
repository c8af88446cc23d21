"""Do the intervals of counts hold what they promise? Simulated pictures of nuclei answer, as many as are wanted.

`python tests/experiments/intervals.py [--out DIR] [--repeats 2]`

Each repeat trains 5 small networks on 5 folds of 50 pictures, calibrates them with the out-of-fold counts, and counts 100 new
pictures. Printed are the errors, and how many true counts lie in the CV+ intervals of 90 %. A repeat takes a quarter of an hour
on one core; killed, the same call goes on.
"""

import argparse
from pathlib import Path

import pandas as pd

from cellseg_nb.measure.points import count_errors, interval_scores
from cellseg_nb.segment.count import calibrate, count_interval
from cellseg_nb.train.count import count_pictures, count_with, cross_conformal
from cellseg_nb.train.recipes.count import CountTrainConfig

FOLDS, LEVEL, NEW = 5, 0.9, 100


def configuration(seed: int) -> CountTrainConfig:
    """A training of a minute or two on one core."""
    return CountTrainConfig(
        name="intervals",
        seed=seed,
        data={"dataset": "simulated-nuclei", "simulated": 50, "validation_fraction": 0},
        network={"encoder": "mobilenet_v2", "encoder_depth": 3, "decoder_channels": [48, 24, 16]},
        training={"epochs": 3, "steps_per_epoch": 100, "batch_size": 8, "crop_px": 128},
    )


def repeat(seed: int, out: Path) -> pd.DataFrame:
    """Train, calibrate, and count pictures that no model has seen."""
    table, folds = out / f"counts_{seed}.csv", range(1, FOLDS + 1)
    if table.is_file():
        return pd.read_csv(table)
    config, runs = configuration(seed), out / f"seed_{seed}"
    calibration = calibrate(cross_conformal(config, FOLDS, runs), LEVEL)
    new = count_pictures(config.data.model_copy(update={"simulated": NEW}), 500 + seed)
    rows = []
    for _, own in count_with([runs / f"fold_{fold}" / "model" for fold in folds], new).groupby("image"):
        counts, spreads = (dict(zip(own["model"].astype(str), own[name])) for name in ("predicted", "spread"))
        low, high = count_interval(counts, calibration, spread=spreads)
        row = {"seed": seed, "truth": own["truth"].iloc[0], "predicted": own["predicted"].mean()}
        rows.append(row | {"low": low, "high": high})
    found = pd.DataFrame(rows)
    found.to_csv(table, index=False)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/intervals"), help="folder of models and tables")
    parser.add_argument("--repeats", type=int, default=2)
    chosen = parser.parse_args()
    found = pd.concat([repeat(seed, chosen.out) for seed in range(1, chosen.repeats + 1)], ignore_index=True)
    for name, part in [*found.groupby("seed"), ("all", found)]:
        errors = count_errors(part["truth"], part["predicted"])
        held = interval_scores(part["truth"], part["low"], part["high"], LEVEL)
        ends = f"{held['coverage_low']:.1%} to {held['coverage_high']:.1%}"
        print(
            f"repeat {name}: {len(part)} pictures, MAE {errors['mae']:.2f}, bias {errors['bias']:.2f}, "
            f"{held['coverage']:.1%} of the true counts inside ({ends}), "
            f"median width {held['median_relative_width']:.2f} of the count"
        )


if __name__ == "__main__":
    main()
