"""Does a learning curve say what more labels give? Predicted from 5 to 80 pictures, and then really trained on 160.

    CELLSEG_DATA=FOLDER python tests/experiments/learning_curve.py --out DIR [--table FILE]

A small network is trained on 5, 10, 20, 40 and 80 fluorescence pictures of dsb2018 train, 1,600 crops each; what 160 pictures
would give is predicted from these; then 160 train. All are scored on the same pictures of train that were set aside; test is not
looked at. The same call goes on where it stopped. `--table` writes objects and hits of every validation picture, from which the
lesson about nuclei draws its curve (`nbs/images/learning_curve.csv`).
"""

import argparse
from pathlib import Path

import pandas as pd

from cellseg_nb.core import write_csv
from cellseg_nb.train.curve import curves_of, point_folder, run_curve, sentence, train_on, validation_rows, write_curves
from cellseg_nb.train.recipes.maps import TrainConfig

SIZES, ASKED = "5,10,20,40,80", 160
CONFIG = {
    "name": "learning-curve",
    "seed": 1,
    "data": {"dataset": "dsb2018", "split": "train", "kind": "fluorescence", "validation_fraction": 0.12},
    "network": {
        "architecture": "Unet",
        "encoder": "tu-tf_efficientnet_lite0",
        "in_channels": 1,
        "encoder_depth": 5,
        "decoder_channels": [128, 64, 32, 16, 16],
    },
    "training": {
        "encoder_weights": "auto",
        "epochs": 4,
        "crops_per_epoch": 400,
        "batch_size": 8,
        "crop_px": 160,
        "learning_rate": 0.002,
        "average": 0.99,
    },
}


def picture_table(out: Path, sizes: list[int]) -> pd.DataFrame:
    """Objects and hits of every validation picture, by number, below each other for all trainings."""
    rows = []
    for number in sizes:
        table = validation_rows(point_folder(out, number)).drop(columns="kind")
        rows.append(table.assign(image=range(1, len(table) + 1)).assign(n=number))
    return pd.concat(rows)[["n", *rows[0].columns.drop("n")]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the trainings")
    parser.add_argument("--table", type=Path, help="write what was found in every validation picture")
    asked = parser.parse_args()
    config = TrainConfig(**CONFIG)
    table = run_curve(config, SIZES, asked.out)
    curves = curves_of(config, table, asked.out, ASKED)
    print(f"\n{table.to_string(index=False)}\n")
    for curve in curves:
        a, b, c, _ = curve.law
        print(f"{sentence(curve, ASKED)}; {a:.3f} - {b:.3f} n^-{c:.2f}")
    print(f"picture: {write_curves(curves, ASKED, asked.out)}", flush=True)
    really = train_on(config, ASKED, point_folder(asked.out, ASKED))
    print(f"\n{'':<10}{'predicted':>10}{'low':>8}{'high':>8}{'really':>8}{'inside':>8}")
    for curve in curves:
        said, true = curve.band[curve.band["n"] == ASKED].iloc[0], really[curve.name]
        inside = "yes" if said["low"] <= true <= said["high"] else "no"
        print(f"{curve.name:<10}{said['score']:>10.3f}{said['low']:>8.3f}{said['high']:>8.3f}{true:>8.3f}{inside:>8}")
    if asked.table:
        write_csv(asked.table, picture_table(asked.out, [*map(int, table["n"]), ASKED]))


if __name__ == "__main__":
    main()
