"""Models for nuclei side by side on the test images of each data set at hand: the scoreboard.

    python tests/bench/nuclei.py            prints it
    python tests/bench/nuclei.py --write    also keeps the table and a plot for the site (`make scoreboard`)

Every model of the package for nuclei, and Otsu's threshold with watershed, whose settings are the best of a grid on training
images of the same data set; the networks are used as they come. Scores are pooled over the images. Every method has a process
of its own on each data set, one after the other, and one thread. Seconds per megapixel are processor time, which suffers less
when the machine is busy; they do not count loading the model nor the first image. Memory is the peak of the process, libraries
included (Linux: VmHWM).
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

IMAGES = Path(__file__).parents[2] / "nbs" / "images"
GRID = {"sigma_px": (1, 2), "seed_height_px": (0.5, 0.75, 1.0, 1.5), "min_area_px": (15, 30)}
N_TUNING = 60
METHODS = {  # as it is called in the table: the bundle
    "Otsu + watershed": None,
    "nuclei (U-Net + watershed)": "nuclei",
    "stars (StarDist)": "stars",
}


def pictures(dataset, split, limit=None):
    """Gray pictures and labels of one split, evenly chosen."""
    from cellseg_nb.data.catalog import samples
    from cellseg_nb.data.io import luminance

    chosen = samples(dataset, split=split, kind="fluorescence")
    step = 1 if limit is None else max(1, len(chosen) // limit)
    for sample in chosen[::step]:
        image = sample.image()
        yield (luminance(image) if image.ndim == 3 else image), sample.labels()


def score(images, segment):
    """Pooled scores, errors of the counts, and seconds per megapixel."""
    from cellseg_nb.measure.matching import match, pool

    matchings, seconds, megapixels = [], 0.0, 0.0
    for image, truth in images:
        if not matchings:
            segment(image)
        started = time.process_time()
        found = segment(image)
        seconds += time.process_time() - started
        megapixels += image.size / 1e6
        matchings.append(match(truth, found))
    off = [abs(one.n_truth - one.n_pred) for one in matchings]
    return pool(matchings), sum(off) / len(off), seconds / megapixels, len(matchings)


def tuned_otsu(dataset):
    """Otsu's method with the settings of the best mean AP on training images."""
    from cellseg_nb.segment.watershed import otsu_watershed

    images = list(pictures(dataset, "train", N_TUNING))
    settings = [dict(zip(GRID, values)) for values in product(*GRID.values())]

    def mean_ap(one):
        return score(images, lambda image: otsu_watershed(image, **one))[0].mean_ap

    best = max(settings, key=mean_ap)
    return lambda image: otsu_watershed(image, **best)


def training_facts(bundle):
    """Minutes of training, from the log, and random crops seen: as model.json says, or as its settings do."""
    from cellseg_nb.models.bundle import find_bundle, read_specification

    with open(find_bundle(bundle) / "log.csv", encoding="utf-8") as file:
        minutes = sum(float(row["seconds"]) for row in csv.DictReader(file)) / 60
    facts = read_specification(bundle).training
    how = facts["config"]["training"]
    return round(minutes), facts.get("crops") or how["epochs"] * how["steps_per_epoch"] * how["batch_size"]


def row(method, dataset):
    """One line of the table, measured in this process."""
    bundle = METHODS[method]
    if bundle is None:
        started = time.perf_counter()
        segment = tuned_otsu(dataset)
        minutes, crops = round((time.perf_counter() - started) / 60, 1), 0
    else:
        from cellseg_nb.models.bundle import load_bundle
        from cellseg_nb.run.analyse import segment_image

        model = load_bundle(bundle)
        minutes, crops = training_facts(bundle)

        def segment(image):
            return segment_image(image, model).labels

    total, count_error, speed, n_images = score(pictures(dataset, "test"), segment)
    status = Path("/proc/self/status").read_text()
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return {
        "data set": dataset,
        "method": method,
        "images": n_images,
        "objects": total.n_truth,
        **{f"AP@.{t:.0f}": round(float(total.at(t / 10)["ap"]), 3) for t in (5, 7, 9)},
        "mean AP": round(total.mean_ap, 3),
        "count MAE": round(count_error, 2),
        "s/Mpx": round(speed, 2),
        "peak MiB": round(int(peak) / 1024),
        "training min": minutes,
        "training crops": crops,
    }


def in_own_process(method, dataset):
    """Run `row` in a fresh process."""
    command = [sys.executable, __file__, "--one", method, dataset]
    one = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | one | quiet)
    return json.loads(done.stdout.splitlines()[-1])


def write(rows):
    """Keep the table and a plot of accuracy against threshold for the site."""
    from matplotlib.figure import Figure

    with open(IMAGES / "scoreboard.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    datasets = list(dict.fromkeys(one["data set"] for one in rows))
    figure = Figure(figsize=(4.2 * len(datasets), 3), layout="constrained")
    panels = figure.subplots(1, len(datasets), sharey=True, squeeze=False)[0]
    columns = ["AP@.5", "AP@.7", "AP@.9", "mean AP"]
    methods = list(dict.fromkeys(one["method"] for one in rows))
    for panel, dataset in zip(panels, datasets):
        for one in (one for one in rows if one["data set"] == dataset):
            n = methods.index(one["method"])
            places = [place + (n - (len(methods) - 1) / 2) * 0.26 for place in range(len(columns))]
            heights = [one[column] for column in columns]
            colour = ("#999999", "#0072b2", "#e69f00")[n]
            bars = panel.bar(places, heights, 0.24, color=colour, label=one["method"])
            panel.bar_label(bars, [f"{h:.2f}".lstrip("0") for h in heights], fontsize=7)
        panel.set(title=f"{dataset}, test", xticks=range(len(columns)), xticklabels=columns)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(0, 1)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(IMAGES / "scoreboard.png", dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keep table and plot for the site")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "DATASET"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(row(*arguments.one)))
        return
    from cellseg_nb.data.catalog import locate
    from cellseg_nb.models.bundle import list_bundles

    datasets = ["simulated-nuclei"] + (["dsb2018"] if locate("dsb2018") else [])
    rows = []
    for dataset in datasets:
        for method, bundle in METHODS.items():
            if bundle is None or bundle in list_bundles():
                rows.append(in_own_process(method, dataset))
                if len(rows) == 1:
                    print("  ".join(rows[0]))
                shown = (str(value).ljust(len(name)) for name, value in rows[-1].items())
                print("  ".join(shown), flush=True)
    if arguments.write:
        write(rows)


if __name__ == "__main__":
    main()
