"""Accuracy of the model `nuclei` beside Otsu's threshold and watershed, tuned on training images.

Prints, for the test images of each data set at hand, pooled scores of both methods. Otsu's settings
are the best of a grid on training images of the same data set; the network is used as it comes.
"""

import time
from itertools import product

from cellseg_nb.data.catalog import locate, samples
from cellseg_nb.data.io import luminance
from cellseg_nb.measure.matching import match, pool
from cellseg_nb.models.bundle import load_bundle
from cellseg_nb.run.analyse import segment_image
from cellseg_nb.segment.watershed import otsu_watershed

GRID = {"sigma_px": (1, 2), "seed_height_px": (0.5, 0.75, 1.0, 1.5), "min_area_px": (15, 30)}
N_TUNING = 60


def pictures(dataset, split, limit=None):
    """Gray pictures and labels of one split, evenly chosen."""
    chosen = samples(dataset, split=split, kind="fluorescence")
    step = 1 if limit is None else max(1, len(chosen) // limit)
    for sample in chosen[::step]:
        image = sample.image()
        yield (luminance(image) if image.ndim == 3 else image), sample.labels()


def score(images, segment):
    """Pooled scores, and seconds per megapixel."""
    matchings, seconds, megapixels = [], 0.0, 0.0
    for image, truth in images:
        started = time.perf_counter()
        found = segment(image)
        seconds += time.perf_counter() - started
        megapixels += image.size / 1e6
        matchings.append(match(truth, found))
    return pool(matchings), seconds / megapixels


def tuned_otsu(dataset):
    """The settings with the best mean AP on training images."""
    images = list(pictures(dataset, "train", N_TUNING))
    settings = [dict(zip(GRID, values)) for values in product(*GRID.values())]
    return max(
        settings,
        key=lambda one: score(images, lambda image: otsu_watershed(image, **one))[0].mean_ap,
    )


def main():
    bundle = load_bundle("nuclei")
    datasets = ["simulated-nuclei"] + (["dsb2018"] if locate("dsb2018") else [])
    print(f"{'data set':<17} {'method':<8} {'AP@.5':>6} {'AP@.7':>6} {'AP@.9':>6} {'mean AP':>8} s/Mpx")
    for dataset in datasets:
        best = tuned_otsu(dataset)
        methods = {
            "otsu": lambda image: otsu_watershed(image, **best),
            "nuclei": lambda image: segment_image(image, bundle).labels,
        }
        for method, segment in methods.items():
            total, speed = score(pictures(dataset, "test"), segment)
            at = {t: total.at(t)["ap"] for t in (0.5, 0.7, 0.9)}
            line = f"{at[0.5]:6.3f} {at[0.7]:6.3f} {at[0.9]:6.3f} {total.mean_ap:8.3f} {speed:5.2f}"
            print(f"{dataset:<17} {method:<8} {line}", flush=True)
        print(f"  otsu tuned on {N_TUNING} training images: {best}")


if __name__ == "__main__":
    main()
