"""The models side by side on the test pictures of each data set at hand: the scoreboard.

    python tests/bench/models.py                    prints its three tables: outlines, counts, stacks
    python tests/bench/models.py --only counts      prints one of them
    python tests/bench/models.py --write            also keeps the tables and a plot for the site (`make scoreboard`)
    python tests/bench/models.py --before REVISION  also measures the models as they were in that revision of the repository

Models are used as they come; the settings of Otsu's threshold with watershed are the best of a grid on training pictures of the same
data set. Scores are pooled over the pictures, or the mean over pictures where the column says so. Every row has a process of its
own, one after the other, and one thread. Seconds per megapixel are processor time, which suffers less when the machine is busy; they
do not count loading the model nor the first picture. Memory is the peak of the process, libraries included (Linux: VmHWM).
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "tests" / "experiments"
IMAGES = ROOT / "nbs" / "images"
GRID = {"sigma_px": (1, 2), "seed_height_px": (0.5, 0.75, 1.0, 1.5), "min_area_px": (15, 30)}
N_TUNING = 60
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
ONE_THREAD["TF_CPP_MIN_LOG_LEVEL"] = "3"
OTSU = "Otsu + watershed"
STAINED = ("purple_on_purple", "purple_on_white", "brightfield_gray")
SETS = {  # what it is called: data set, kinds of picture, methods
    "simulated-nuclei": ("simulated-nuclei", ("fluorescence",), (OTSU, "nuclei", "nuclei-fast", "stars")),
    "dsb2018 fluorescence": ("dsb2018", ("fluorescence",), (OTSU, "nuclei", "nuclei-fast", "nuclei-stained", "stars")),
    "dsb2018 stained": ("dsb2018", STAINED, ("nuclei", "nuclei-stained")),
    "phase-cells": ("phase-cells", ("phase_contrast",), ("phase-cells",)),
}
COLOURS = {
    OTSU: "#999999",
    "nuclei": "#0072b2",
    "nuclei-fast": "#56b4e9",
    "nuclei-stained": "#cc79a7",
    "phase-cells": "#009e73",
    "stars": "#e69f00",
}


def pictures(name, split, limit=None):
    """Pictures and labels of one split, evenly chosen."""
    from cellseg_nb.data.catalog import samples

    dataset, kinds, _ = SETS[name]
    chosen = [one for kind in kinds for one in samples(dataset, split, kind)]
    step = 1 if limit is None else max(1, len(chosen) // limit)
    for sample in chosen[::step]:
        yield sample.image(), sample.labels()


def score(images, segment):
    """Matchings of the pictures, and seconds per megapixel."""
    from cellseg_nb.measure.matching import match

    matchings, seconds, megapixels = [], 0.0, 0.0
    for image, truth in images:
        if not matchings:
            segment(image)
        started = time.process_time()
        found = segment(image)
        seconds += time.process_time() - started
        megapixels += truth.size / 1e6
        matchings.append(match(truth, found))
    return matchings, seconds / megapixels


def otsu(image, **settings):
    """Otsu's method on the gray picture."""
    from cellseg_nb.data.planes import with_channels
    from cellseg_nb.segment.watershed import otsu_watershed

    return otsu_watershed(with_channels(image, 1), **settings)


def tuned_otsu(name):
    """Otsu's method with the settings of the best mean AP on training pictures."""
    from cellseg_nb.measure.matching import pool

    images = list(pictures(name, "train", N_TUNING))
    settings = [dict(zip(GRID, values)) for values in product(*GRID.values())]

    def mean_ap(one):
        return pool(score(images, lambda image: otsu(image, **one))[0]).mean_ap

    best = max(settings, key=mean_ap)
    return lambda image: otsu(image, **best)


def network(folder):
    """What a model of the package, or of a folder, finds."""
    from cellseg_nb.data.planes import with_channels
    from cellseg_nb.models.bundle import load_bundle
    from cellseg_nb.run.analyse import segment_image

    model = load_bundle(folder)
    channels = model.specification.network.in_channels
    return lambda image: segment_image(with_channels(image, channels), model).labels


def training_facts(folder):
    """Minutes of training, from the log, and random crops seen: as model.json says, or as its settings do."""
    from cellseg_nb.models.bundle import find_bundle, read_specification

    with open(find_bundle(folder) / "log.csv", encoding="utf-8") as file:
        minutes = sum(float(row["seconds"]) for row in csv.DictReader(file)) / 60
    facts = read_specification(folder).training
    how = facts["config"]["training"]
    crops = how["epochs"] * (how.get("crops_per_epoch") or how.get("steps_per_epoch", 0) * how["batch_size"])
    return round(minutes), facts.get("crops") or crops


def row(name, method, folder):
    """One line of the table, measured in this process."""
    from cellseg_nb.measure.matching import average, pool

    if method == OTSU:
        started = time.perf_counter()
        segment = tuned_otsu(name)
        minutes, crops = round((time.perf_counter() - started) / 60, 1), 0
    else:
        segment, (minutes, crops) = network(folder), training_facts(folder)
    matchings, speed = score(pictures(name, "test"), segment)
    status = Path("/proc/self/status").read_text()
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    total, mean = pool(matchings), average(matchings)
    off = [abs(one.n_truth - one.n_pred) for one in matchings]
    return {
        "data set": name,
        "method": method,
        "images": len(matchings),
        "objects": total.n_truth,
        **{f"AP@.{t:.0f}": round(float(total.at(t / 10)["ap"]), 3) for t in (5, 7, 9)},
        "mean AP": round(total.mean_ap, 3),
        "AP@.5 per image": round(float(mean["ap"].iloc[0]), 3),
        "mean AP per image": round(float(mean["ap"].mean()), 3),
        "count MAE": round(sum(off) / len(off), 2),
        "count error": round(sum(off) / total.n_truth, 3),
        "s/Mpx": round(speed, 2),
        "peak MiB": round(int(peak) / 1024),
        "training min": minutes,
        "training crops": crops,
    }


def in_own_process(name, method, folder, label):
    """Run `row` in a fresh process."""
    command = [sys.executable, __file__, "--one", name, method, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | ONE_THREAD)
    return json.loads(done.stdout.splitlines()[-1]) | {"method": label}


def bundles_before(revision, folder):
    """Models of another revision whose files have changed since: name → folder."""
    place = "cellseg_nb/bundles"
    command = ["git", "-C", str(ROOT)]
    changed = subprocess.run(
        [*command, "diff", "--name-only", revision, "--", place], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    archive = folder / "before.tar"
    subprocess.run([*command, "archive", "-o", str(archive), revision, place], check=True)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    names = {Path(one).parent.name for one in changed.splitlines() if one.endswith("weights.safetensors")}
    kept = {one.name: one for one in sorted((folder / place).iterdir()) if one.name in names}
    return {name: one.rename(one.with_name(f"{name}, before")) for name, one in kept.items()}


def rows_of(name, before):
    """Rows of a data set: name, method, folder, label."""
    from cellseg_nb.models.bundle import list_bundles

    for method in SETS[name][2]:
        if method in before:
            yield name, method, before[method], f"{method}, before"
        if method == OTSU or method in list_bundles():
            yield name, method, method, method


def experiment(script, before, names, options):
    """The table of a script of `experiments` on the test part, one thread."""
    models = [*names, *(str(before[name]) for name in names if name in before)]
    command = [sys.executable, str(EXPERIMENTS / script), *models, *map(str, options)]
    subprocess.run(command, check=True, env=os.environ | ONE_THREAD)


def counts(before, folder):
    """Models that count."""
    experiment("count_real.py", before, ("count-cells", "count-any"), ("--part", "test", "--out", folder))
    return folder / "test_scores.csv"


def stacks(before, folder):
    """Models for stacks, beside a plain watershed."""
    experiment("membranes3d.py", before, ("membranes3d",), ("--out", folder / "stacks.csv"))
    return folder / "stacks.csv"


def write(rows):
    """Keep the table and a plot of accuracy against threshold for the site."""
    from matplotlib.figure import Figure

    with open(IMAGES / "scoreboard.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    rows = [one for one in rows if one["method"] in COLOURS]
    names = list(dict.fromkeys(one["data set"] for one in rows))
    figure = Figure(figsize=(3.6 * len(names), 3), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    columns = ["AP@.5", "AP@.7", "AP@.9", "mean AP"]
    for panel, name in zip(panels, names):
        own = [one for one in rows if one["data set"] == name]
        width = 0.84 / len(own)
        for n, one in enumerate(own):
            places = [place + (n - (len(own) - 1) / 2) * width for place in range(len(columns))]
            heights = [one[column] for column in columns]
            bars = panel.bar(places, heights, width * 0.92, color=COLOURS[one["method"]], label=one["method"])
            panel.bar_label(bars, [f"{h:.2f}".lstrip("0") for h in heights], fontsize=6)
        panel.set(title=f"{name}, test", xticks=range(len(columns)), xticklabels=columns)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(0, 1)
    handles = {label: one for panel in panels for one, label in zip(*panel.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    figure.savefig(IMAGES / "scoreboard.png", dpi=110)


def measured(before):
    """Every row of every data set at hand, printed as it comes."""
    from cellseg_nb.data.catalog import state

    rows = []
    for name, (dataset, *_) in SETS.items():
        for one in rows_of(name, before) if state(dataset) in ("here", "computed") else ():
            rows.append(in_own_process(*one))
            if len(rows) == 1:
                print("  ".join(rows[0]))
            print("  ".join(str(value).ljust(len(key)) for key, value in rows[-1].items()), flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keep tables and plot for the site")
    parser.add_argument("--only", choices=["outlines", "counts", "stacks"], help="one of the tables")
    parser.add_argument("--before", metavar="REVISION", help="measure the models of that revision, too")
    parser.add_argument("--one", nargs=3, metavar=("SET", "METHOD", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(row(*arguments.one)))
        return
    with TemporaryDirectory() as place:
        folder = Path(place)
        before = bundles_before(arguments.before, folder) if arguments.before else {}
        if arguments.only in (None, "outlines"):
            rows = measured(before)
            if arguments.write:
                write(rows)
        for name, table in (("counts", counts), ("stacks", stacks)):
            if arguments.only in (None, name):
                found = table(before, folder)
                if arguments.write:
                    shutil.copy(found, IMAGES / f"scoreboard_{name}.csv")


if __name__ == "__main__":
    main()
