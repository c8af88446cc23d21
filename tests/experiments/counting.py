"""Counting from points on three public data sets: trained on `train`, reported once on `test`.

`CELLSEG_DATA=FOLDER python tests/experiments/counting.py --out DIR [--runs DIR] [--jobs 8] [--seconds 270]`

The data sets are those of the folder `counting`: vgg_synthetic (its first 64 training pictures), mbm and adi. For each, a few
recipes are trained on 5 folds of the training pictures, and the one with the smallest error of the out-of-fold counts is
taken. Its 5 models then count the test pictures; the mean of their counts is scored, with CV+ intervals of 90 %. Beside
that: half and a quarter of the points of vgg_synthetic, with foreground masks that leave out what may be a cell without a
point, and without.

All trainings share one graphics card, `--jobs` at a time. After `--seconds` none is started any more, and what is finished is
reported. The same call again goes on. `--out` gets tables only: choice.csv (error of every recipe), oof.csv, counts.csv (every
test picture: truth, mean, interval, count and spread of each model), sparse.csv, scores.csv; `--runs` gets the models.
`--tables DIR` names the tables of an earlier call: its recipes compete, too. Without `--recipes`, nothing is trained then, and the
intervals are made anew. The tables that the documentation reports are in `tests/experiments/counting`.
`--bundle` trains the default model count-cells instead (5 folds for its intervals, and one on all pictures).
"""

import argparse
import copy
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import pandas as pd

FOLDS = 5
U_NET = {"encoder": "vgg11_bn", "in_channels": 3, "encoder_depth": 4, "decoder_channels": [128, 64, 32, 32]}
U_NET |= {"attention": "scse"}
TRAINING = {"epochs": 4, "steps_per_epoch": 300, "batch_size": 8, "crop_px": 256, "learning_rate": 0.001}
BASE = {
    "task": "count",
    "data": {"split": "train", "validation_fraction": 0},
    "network": U_NET,
    "normalisation": {"per_image": False},
    "training": TRAINING,
}
SETS = {
    "vgg_synthetic": {
        "data": {"images": 64},
        "target": {"sigma_px": 2},
        "augmentation": {"scale": [1, 1], "gamma": [0.95, 1.05], "contrast": [0.95, 1.05], "brightness": 0.01},
    },
    "mbm": {
        "scales": [0.5],
        "target": {"sigma_px": 3.5},
        "augmentation": {"scale": [0.8, 1.25], "rotation_degrees": 45, "colour": 0.1, "blur_px": 0.7},
    },
    "adi": {
        "scales": [2],
        "target": {"sigma_px": 4},
        "augmentation": {"scale": [0.85, 1.2], "rotation_degrees": 45, "colour": 0.05},
    },
}
RECIPES: dict[str, dict] = {  # what differs, for all sets ("*") and for each
    "mse": {},
    "mse-count": {"*": {"training": {"count_weight": 0.003}}},
    "larger": {
        "vgg_synthetic": {"scales": [1.5], "target": {"sigma_px": 3}},
        "mbm": {"scales": [0.75], "target": {"sigma_px": 5}},
        "adi": {"scales": [3], "target": {"sigma_px": 5}},
    },
    "wider": {
        "vgg_synthetic": {"target": {"sigma_px": 3}},
        "mbm": {"target": {"sigma_px": 5}},
        "adi": {"target": {"sigma_px": 6}},
    },
    "resnet34": {"*": {"network": {"encoder": "resnet34", "decoder_channels": [128, 64, 32, 16]}}},
    "long": {"*": {"training": {"epochs": 8}}},
}
SPARSE = [
    ("all", 1.0, False),
    ("half", 0.5, True),
    ("half", 0.5, False),
    ("quarter", 0.25, True),
    ("quarter", 0.25, False),
]
CELL_RADIUS_PX = 8  # of the cells of vgg_synthetic: what lies farther from every point may be another cell


def merged(*fields: dict) -> dict:
    """Lay nested settings over each other, the last on top."""
    result: dict = {}
    for one in fields:
        for key, value in one.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else copy.deepcopy(value)
    return result


def configuration(dataset: str, recipe: str, quick: bool, seed: int = 0):
    """All settings of a training."""
    from cellseg_nb.train.recipes.count import CountTrainConfig

    own = [RECIPES[recipe].get(key, {}) for key in ("*", dataset)]
    fields = merged(BASE, SETS[dataset], *own, {"name": dataset, "seed": seed})
    fields["data"]["dataset"] = dataset
    if quick:
        small = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 2, "crop_px": 64}
        fields["training"] |= small
        fields["data"]["images"] = 10
    return CountTrainConfig(**fields)


def start_worker() -> None:
    """One thread per training."""
    import torch

    torch.set_num_threads(1)


def train_one_fold(dataset: str, recipe: str, fold: int, runs: Path, quick: bool) -> pd.DataFrame:
    """Train without one fold, and count it."""
    from cellseg_nb.train.count import train_fold

    return train_fold(configuration(dataset, recipe, quick), FOLDS, fold, runs / dataset / recipe / f"fold_{fold}")


def foreground(image: np.ndarray) -> np.ndarray:
    """Where cells can be: brighter than the threshold of Li, after smoothing."""
    from scipy import ndimage
    from skimage.filters import threshold_li

    smooth = ndimage.gaussian_filter(image.astype(np.float32).sum(-1), 1)
    return smooth > threshold_li(smooth)


def train_sparse(part: float, masked: bool, runs: Path, quick: bool) -> Path:
    """Train on a part of the points of vgg_synthetic, with ignore masks or without."""
    from cellseg_nb.train.count import count_pictures, fit_count, for_training

    config = configuration("vgg_synthetic", "mse", quick)
    changes = {"keep_points": part, "max_distance_px": CELL_RADIUS_PX if masked else None}
    config = config.model_copy(update={"data": config.data.model_copy(update=changes)})
    pictures = [one._replace(mask=foreground(one.image)) for one in count_pictures(config.data)]
    out = runs / "sparse" / f"{part}_{'masks' if masked else 'plain'}"
    return fit_count(config, out, [for_training(one, config.data) for one in pictures])


def count_test(dataset: str, model: Path, quick: bool) -> pd.DataFrame:
    """Count the test pictures with one model."""
    from cellseg_nb.train.count import count_pictures, count_with
    from cellseg_nb.train.recipes.count import CountDataSettings

    test = count_pictures(CountDataSettings(dataset=dataset, split="test"))
    return count_with([model], test[:4] if quick else test)


def finished(pool: ProcessPoolExecutor, tasks: dict, deadline: float, jobs: int) -> dict:
    """Run tasks, a few at a time; after the deadline none is started any more."""
    waiting, running, results = list(tasks.items()), {}, {}
    while waiting or running:
        while waiting and len(running) < jobs and time.monotonic() < deadline:
            name, (function, *arguments) = waiting.pop(0)
            running[pool.submit(function, *arguments)] = name
        if not running:
            break
        done = next(as_completed(running))
        name = running.pop(done)
        try:
            results[name] = done.result()
            print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        except Exception as error:  # the others go on
            print(f"FAILED {name}: {type(error).__name__}: {error}", flush=True)
    if waiting:
        print(f"not started before the deadline: {[name for name, _ in waiting]}", flush=True)
    return results


def mean_absolute(table: pd.DataFrame) -> float:
    return float((table["predicted"] - table["truth"]).abs().mean())


def choose(oof: pd.DataFrame) -> pd.DataFrame:
    """Error of every recipe on every data set; the smallest is chosen."""
    errors = (oof["predicted"] - oof["truth"]).abs()
    groups = errors.groupby([oof["dataset"], oof["recipe"]], sort=False)
    choice = groups.agg(pictures="size", oof_mae="mean").reset_index()
    return choice.assign(chosen=choice["oof_mae"] == choice.groupby("dataset")["oof_mae"].transform("min"))


def with_intervals(counts: pd.DataFrame, oof: pd.DataFrame) -> pd.DataFrame:
    """Add to each test picture the mean of the models and its CV+ interval, from the counts of all folds."""
    from cellseg_nb.segment.count import calibrate, count_interval

    calibration, rows = calibrate(oof), []
    for row in counts.to_dict("records"):
        by_fold, spreads = (
            {str(fold): row[f"{name}_{fold}"] for fold in range(1, FOLDS + 1)} for name in ("fold", "spread")
        )
        row["predicted"] = float(np.mean(list(by_fold.values())))
        row["low"], row["high"] = count_interval(by_fold, calibration, spread=spreads)
        rows.append(row)
    return pd.DataFrame(rows)


def side_by_side(counts: pd.DataFrame) -> pd.DataFrame:
    """One row per test picture, with the count and the spread of every model."""
    rows = []
    for name, each in counts.groupby("image", sort=False):
        row = {"image": name, "truth": int(each["truth"].iloc[0]), "predicted": 0.0, "low": 0.0, "high": 0.0}
        row |= {f"fold_{fold}": value for fold, value in zip(each["fold"], each["predicted"])}
        rows.append(row | {f"spread_{fold}": value for fold, value in zip(each["fold"], each["spread"])})
    return pd.DataFrame(rows)


def scores(counts: pd.DataFrame) -> pd.DataFrame:
    """Errors of the counts and coverage of the intervals, for each data set and for all."""
    from cellseg_nb.measure.points import count_errors, interval_scores

    rows = []
    for dataset in [*dict.fromkeys(counts["dataset"]), "all"]:
        part = counts if dataset == "all" else counts[counts["dataset"] == dataset]
        errors = count_errors(part["truth"], part["predicted"])
        held = interval_scores(part["truth"], part["low"], part["high"])
        row = {"dataset": dataset, "pictures": len(part)}
        row |= {"MAE": errors["mae"], "RMSE": errors["rmse"], "bias": errors["bias"]}
        row |= {name: held[name] for name in ("coverage", "coverage_low", "coverage_high")}
        rows.append(row | {"median_width": held["median_relative_width"]})
    return pd.DataFrame(rows).round(3)


def report(counts: pd.DataFrame, oof: pd.DataFrame, out: Path) -> None:
    """Make the intervals of all data sets, and write and print the scores."""
    made = [
        with_intervals(own, oof[(oof["dataset"] == dataset) & (oof["recipe"] == recipe)])
        for (dataset, recipe), own in counts.groupby(["dataset", "recipe"], sort=False)
    ]
    counts = pd.concat(made, ignore_index=True)
    counts.round(3).to_csv(out / "counts.csv", index=False)
    table = scores(counts)
    table.to_csv(out / "scores.csv", index=False)
    print(table.to_string(index=False), flush=True)


def sparse_scores(pool: ProcessPoolExecutor, models: dict, quick: bool) -> pd.DataFrame:
    """Error on the test pictures of the models that were trained on a part of the points."""
    coming = {key: pool.submit(count_test, "vgg_synthetic", model, quick) for key, model in models.items()}
    rows = []
    for (_, name, part, masked), result in coming.items():
        table = result.result()
        bias = float((table["predicted"] - table["truth"]).mean())
        rows.append({"points": name, "part": part, "masks": masked, "MAE": mean_absolute(table), "bias": bias})
    return pd.DataFrame(rows).round(2)


def count_all_tests(pool: ProcessPoolExecutor, dataset: str, recipe: str, runs: Path, quick: bool) -> pd.DataFrame:
    """Count the test pictures of a data set with the models of all folds."""
    models = [runs / dataset / recipe / f"fold_{fold}" / "model" for fold in range(1, FOLDS + 1)]
    coming = [pool.submit(count_test, dataset, model, quick) for model in models]
    tables = [one.result().assign(fold=fold) for fold, one in enumerate(coming, start=1)]
    return side_by_side(pd.concat(tables, ignore_index=True)).assign(dataset=dataset, recipe=recipe)


def read_tables(folder: Path | None) -> list[pd.DataFrame]:
    """Out-of-fold counts and test counts of an earlier call."""
    if folder is None:
        return [pd.DataFrame({"dataset": [], "recipe": []})] * 2
    return [pd.read_csv(folder / f"{name}.csv", dtype={"image": str}) for name in ("oof", "counts")]


def experiment(chosen: argparse.Namespace, pool: ProcessPoolExecutor) -> None:
    """Train, choose, report."""
    deadline, out, runs, quick = time.monotonic() + chosen.seconds, chosen.out, chosen.runs, chosen.quick
    tasks: dict = {}
    for place, recipe in enumerate(chosen.recipes):
        for fold in range(1, FOLDS + 1):
            for dataset in chosen.sets:
                tasks[dataset, recipe, fold] = (train_one_fold, dataset, recipe, fold, runs, quick)
        if place == 0 and chosen.sparse:
            for name, part, masked in SPARSE:
                tasks["sparse", name, part, masked] = (train_sparse, part, masked, runs, quick)
    results = finished(pool, tasks, deadline, chosen.jobs)
    sparse = {key: results.pop(key) for key in list(results) if key[0] == "sparse"}
    earlier, known = read_tables(chosen.tables)
    whole = [key[:2] for key in results if key[2] == FOLDS and all((*key[:2], n) in results for n in range(1, FOLDS))]
    made = [table.assign(dataset=key[0], recipe=key[1]) for key, table in results.items() if key[:2] in whole]
    if not made and not len(earlier):
        raise SystemExit("no recipe has all its folds; give it more time")
    oof = pd.concat([earlier, *made], ignore_index=True)
    choice = choose(oof)
    print(choice.round(3).to_string(index=False), flush=True)
    choice.to_csv(out / "choice.csv", index=False)
    oof.to_csv(out / "oof.csv", index=False)
    counts = []
    for dataset, recipe in choice.loc[choice["chosen"], ["dataset", "recipe"]].itertuples(index=False):
        own = known[(known["dataset"] == dataset) & (known["recipe"] == recipe)]
        counts.append(own if len(own) else count_all_tests(pool, dataset, recipe, runs, quick))
    report(pd.concat(counts, ignore_index=True), oof, out)
    if sparse:
        table = sparse_scores(pool, sparse, quick)
        table.to_csv(out / "sparse.csv", index=False)
        print(table.to_string(index=False), flush=True)


def train_bundle_fold(fold: int | None, runs: Path, changes: list[str]) -> object:
    """Train count-cells without one fold, or on all pictures."""
    from cellseg_nb.train.count import train_count, train_fold
    from cellseg_nb.train.settings import read_config

    config = read_config("count-cells", changes)
    if fold is not None:
        return train_fold(config, FOLDS, fold, runs / f"fold_{fold}")
    done = (runs / "all" / "config.yml").is_file()
    return train_count(config, runs / "all", resume=done)


def bundle(chosen: argparse.Namespace, pool: ProcessPoolExecutor) -> None:
    """Train the default model with its intervals."""
    runs = chosen.runs / "count-cells"
    small = ["training.epochs=1", "training.steps_per_epoch=2", "training.batch_size=2"]
    small += ["data.simulated=6", "data.dataset=[simulated-nuclei,simulated-phase-contrast]"]
    changes = small if chosen.quick else []
    tasks = {fold or "all": (train_bundle_fold, fold, runs, changes) for fold in (None, *range(1, FOLDS + 1))}
    results = finished(pool, tasks, time.monotonic() + chosen.seconds, chosen.jobs)
    model = results.pop("all", None)
    if results:
        oof = pd.concat(results.values(), ignore_index=True)
        oof.to_csv(chosen.out / "count-cells_oof.csv", index=False)
        print(f"count-cells: out-of-fold MAE {mean_absolute(oof):.2f} over {len(oof)} pictures", flush=True)
        print(
            oof.assign(kind=oof["image"].str.extract(r"^(phase|nuclei)_")[0].fillna("dsb2018"))
            .assign(error=lambda one: (one["predicted"] - one["truth"]).abs())
            .groupby("kind")["error"]
            .mean()
            .round(2)
        )
    if model is not None:
        if len(results) == FOLDS:
            from cellseg_nb.segment.count import calibrate, store_calibration

            store_calibration(model, calibrate(oof))
        shutil.copytree(model, chosen.out / "count-cells", dirs_exist_ok=True)
        shutil.copy(model.parent / "log.csv", chosen.out / "count-cells")
        print(f"model: {chosen.out / 'count-cells'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/counting"), help="folder of the tables")
    parser.add_argument("--runs", type=Path, help="folder of the models; OUT/runs if not given")
    parser.add_argument("--jobs", type=int, default=8, help="trainings at a time")
    parser.add_argument("--seconds", type=float, default=1e9, help="start no training after so many seconds")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument(
        "--recipes", nargs="+", metavar="RECIPE", choices=list(RECIPES), help="default: mse and mse-count"
    )
    parser.add_argument("--no-sparse", dest="sparse", action="store_false", help="leave out the sparse points")
    parser.add_argument(
        "--tables", type=Path, metavar="DIR", help="tables of an earlier call; its recipes compete, too"
    )
    parser.add_argument("--bundle", action="store_true", help="train count-cells instead")
    parser.add_argument("--quick", action="store_true", help="a few pictures and steps, to see that all works")
    chosen = parser.parse_args()
    chosen.recipes = chosen.recipes or ([] if chosen.tables else ["mse", "mse-count"])
    chosen.runs = (chosen.runs or chosen.out / "runs") / ("quick" if chosen.quick else "whole")
    data = os.environ.get("CELLSEG_DATA", "")
    needed = Path(data, "dsb2018") if chosen.bundle else Path(data, "counting")
    if chosen.recipes and (not data or not needed.is_dir()):
        raise SystemExit(f"left out: the data are not here; CELLSEG_DATA must name a folder with {needed.name}/")
    chosen.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.jobs, mp_context=context, initializer=start_worker) as pool:
        (bundle if chosen.bundle else experiment)(chosen, pool)
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
