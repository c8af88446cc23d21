"""Does an encoder that has seen photographs help with nine tiles of kidney? Each tile is left out once, and each slide.

`python tests/experiments/glomeruli.py [--out DIR] [--epochs 7]`

Nine real tiles with glomeruli, of two slides, are far too few to say how good a network is; they can say whether the start of the encoder
matters. Leaving out a tile trains on others of the same slide, which flatters; leaving out a slide does not, and trains on four or five tiles. The
schedule was changed once after a first run on one of these tiles had failed, so the numbers flatter a little; the last epoch counts. Killed, the same call goes on. An hour on one core.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd

from cellseg_nb.measure.intervals import bootstrap_interval
from cellseg_nb.train.experiments import run_folds
from cellseg_nb.train.recipes.pairs import PairTrainConfig

STARTS = {"photographs": "auto", "random numbers": "none"}
QUICK = {"steps_per_epoch": 20, "crop_px": 96, "learning_rate": 0.004, "average": 0.9, "device": "cpu"}
LEFT_OUT = {"tile": (9, ".*"), "slide": (2, None)}  # folds, and the pattern of groups


def configuration(weights: str, pattern: str | None, epochs: int) -> PairTrainConfig:
    """A training of a minute or two on one core."""
    folder = Path(os.environ["CELLSEG_DATA"]) / "glomeruli"
    return PairTrainConfig(
        name="glomeruli",
        data={"dataset": str(folder), "group_pattern": pattern, "validation_fraction": 0},
        network={"encoder": "tu-tf_efficientnet_lite0", "encoder_depth": 4, "decoder_channels": (32, 24, 16, 16)},
        training=QUICK | {"epochs": epochs, "encoder_weights": weights},
    )


def left_out(out: Path, epochs: int) -> pd.DataFrame:
    """Scores of every tile or slide by the networks that never saw it."""
    tables = []
    for what, (folds, pattern) in LEFT_OUT.items():
        for start, weights in STARTS.items():
            found = run_folds(configuration(weights, pattern, epochs), folds, out / f"{what}_{weights}")
            tables.append(pd.concat(found).assign(left_out=what, start=start))
    return pd.concat(tables, ignore_index=True)


def mean_and_interval(values: np.ndarray) -> str:
    """Mean with its 95 % bootstrap interval over tiles."""
    per_tile = np.column_stack([values, np.ones_like(values)])
    low, high = bootstrap_interval(per_tile, lambda sums: sums[:, 0] / sums[:, 1], n_resamples=5000)
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/glomeruli"), help="folder of models and tables")
    parser.add_argument("--epochs", type=int, default=7)
    chosen = parser.parse_args()
    rows = left_out(chosen.out, chosen.epochs)
    rows.to_csv(chosen.out / "left_out.csv", index=False)
    tiles = rows[(rows["left_out"] == "tile") & (rows["truth_px"] > 0)]
    table = tiles.pivot(index="group", columns="start", values="Dice")
    print(table.round(3).to_string())
    for start in STARTS:
        print(
            f"a tile left out, encoder from {start}: Dice {mean_and_interval(table[start].to_numpy())} of {len(table)} tiles with glomeruli"
        )
    gain = (table["photographs"] - table["random numbers"]).to_numpy()
    print(f"gain: {mean_and_interval(gain)}")
    print(rows[rows["left_out"] == "slide"][["group", "start", "pictures", "Dice"]].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
