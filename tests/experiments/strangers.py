"""How well each model tells pictures that are unlike its training: `python tests/experiments/strangers.py [MODEL…]`.

CELLSEG_DATA names a folder that holds `dsb2018`, `counting`, `phase_cells` and `volumes`. False alarms are counted on pictures
of the kind that a model is for, detections on others: stained tissue, phase contrast, blood, noise, and pictures of its own kind
that are inverted, blank, overexposed, out of focus, or whose objects are three times as large or small as the usual
20 px (for networks that want a size). Nothing is chosen here: limits come from
the training pictures, and others of the same kind that are simulated, alone, and the pictures named here are those of the splits for testing.

`count-cells` learned from simulated phase contrast, too, and counts far too many cells in real phase contrast. So its home is
fluorescence alone: phase contrast, simulated or real, must be named.

`--learn` describes the training pictures again and writes what is learned into the shipped models; `--split train` looks at
other parts of the training sets instead, which is where the method was chosen.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage

from cellseg_nb.data.catalog import Sample, data_folder, samples
from cellseg_nb.data.io import luminance, read_image
from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.data.transforms import rescale
from cellseg_nb.models.bundle import Bundle, Normalisation, list_bundles, load_bundle, write_specification
from cellseg_nb.segment.count import count_image
from cellseg_nb.segment.familiarity import OTSU_PICTURES, USUAL_PX, describe, learn_pictures
from cellseg_nb.segment.image import segment_image
from cellseg_nb.segment.stack import segment_stack
from cellseg_nb.train.count import describe_training
from cellseg_nb.train.count_pictures import SIMULATED, read_count_pictures
from cellseg_nb.train.crops import stack_samples
from cellseg_nb.train.finish import describe_pictures
from cellseg_nb.train.settings import StackDataSettings, read_config

MODELS = ("nuclei", "stars", "otsu", "count-cells", "membranes3d")
FLUORESCENT = partial(samples, "dsb2018", kind="fluorescence")


def learn(model: str) -> None:
    """Describe pictures that a shipped model is for, of its training or simulated, and keep what is learned with it."""
    if model == "otsu":
        found = [described(one, "otsu", Normalisation()) for one in home_of_nuclei()]
        OTSU_PICTURES.write_text(learn_pictures(found).model_dump_json() + "\n", encoding="utf-8")
        return
    folder, bundle = list_bundles()[model], load_bundle(model)
    if model == "count-cells":
        pictures = read_count_pictures(read_config("count-cells")).train
        describe_training(folder, [one for one in pictures if not one.name.startswith("phase")])
        return
    if model == "membranes3d":
        known = describe_pictures(bundle, stack_samples(StackDataSettings(split="train")))
    else:
        normalisation = bundle.specification.normalisation
        known = learn_pictures([described(one, bundle, normalisation) for one in home_of_nuclei()])
    changes = {"known_pictures": known, "training_statistics": {}}
    write_specification(folder, bundle.specification.model_copy(update=changes))


def home_of_nuclei() -> list[np.ndarray]:
    """Real pictures for training, and simulated ones of any size, density and noise."""
    real = [gray(one.image()) for one in FLUORESCENT(split="train")]
    simulated = [SIMULATED["simulated-nuclei"](number).image for number in range(50)]
    plain = [one.image() for one in samples("simulated-nuclei", split="train")[:25]]
    small = [simulate_nuclei((96 + 8 * n, 112 + 4 * n), 6 + n, seed=n)[0] for n in range(20)]
    return [*real[:: max(1, len(real) // 150)], *simulated, *plain, *small]


def described(image: np.ndarray, model: str | Bundle, normalisation: Normalisation) -> dict[str, float]:
    """What a model sees and finds in a picture, in numbers."""
    return describe(normalisation.prepare(image), segment_image(image, model).labels, USUAL_PX)


def gray(image: np.ndarray) -> np.ndarray:
    """Brightness of a picture."""
    return luminance(image) if image.ndim == 3 else image


def spoilt(image: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The same picture, or stack, in ways that no model can be right on; and others of its size."""
    plain = image.astype(np.float32)
    low, high = np.percentile(plain, [50, 99.8])
    bright = np.clip((plain - low) / max(0.15 * (high - low), 1e-6), -0.1, 1)
    flat = (0,) * (plain.ndim - 2)
    smooth = ndimage.gaussian_filter(rng.normal(size=plain.shape), (*flat, *[rng.uniform(1, 6)] * 2))
    return {
        "inverted": plain.max() - plain,
        "noise": rng.poisson(rng.uniform(3, 60), plain.shape),
        "smooth noise": np.rint(100 + 30 * smooth / smooth.std()),
        "blank": np.full(plain.shape, rng.integers(0, 255)),
        "overexposed": np.rint(255 * (bright + 0.1)),
        "out of focus": ndimage.gaussian_filter(plain, (*flat, 10, 10)),
    }


def resized(sample: Sample) -> dict[str, np.ndarray]:
    """A picture in which objects are three times as large, and as small, as the usual one of a model."""
    image, labels = gray(sample.image()).astype(np.float32), sample.labels()
    areas = np.bincount(labels.ravel())[1:]
    here = 2 * float(np.sqrt(np.median(areas[areas > 0]) / np.pi))
    larger, smaller = 3 * USUAL_PX / here, USUAL_PX / 3 / here
    edge = max(64, round(1024 / larger))  # a part is enough
    return {"3 x larger": rescale(image[:edge, :edge], larger), "3 x smaller": rescale(image, smaller)}


def folder_pictures(folder: Path, split: str) -> list[np.ndarray]:
    """Pictures of a data set, of one split if it has splits."""
    with (folder / "index.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    name = "image" if "image" in rows[0] else "file"
    wanted = [row[name] for row in rows if row.get("split", split) == split]
    paths = sorted(folder.rglob("images/*"))
    paths = {path.stem: path for path in paths} | {path.name: path for path in paths}
    return [gray(read_image(paths[Path(one).name]).pixels) for one in wanted]


def pictures_for(model: str, split: str, most: int) -> dict[str, list[np.ndarray]]:
    """Pictures by name of their set; sets that a model is for end with an asterisk."""
    root = data_folder()
    if model == "membranes3d":
        return stacks(split, most)
    chosen = FLUORESCENT(split=split)
    chosen = chosen if split == "test" else chosen[1 :: max(1, len(chosen) // most)]
    own = [gray(one.image()) for one in chosen]
    sets = {"dsb2018 fluorescence *": own}
    if model == "count-cells":
        for name, simulate in SIMULATED.items():
            mark = "" if "phase" in name else " *"
            sets[name + mark] = [simulate(number).image for number in range(77_000, 77_000 + most)]
        for name in ("mbm", "adi", "chula_rbc", "bccd", "phase_contrast"):
            sets[name] = folder_pictures(root / "counting" / name, split)[:most]
        sets["phase_cells"] = folder_pictures(root / "phase_cells", split)[:most]
    else:
        sets["simulated nuclei *"] = [SIMULATED["simulated-nuclei"](77_000 + n).image for n in range(most)]
        sets["simulated small *"] = [simulate_nuclei((128, 160), 20, seed=77_000 + n)[0] for n in range(most)]
        for kind in ("purple_on_white", "purple_on_purple", "brightfield_gray"):
            found = [gray(one.image()) for one in samples("dsb2018", split=split, kind=kind)]
            sets[kind] = found[:most]
    step = max(1, len(own) // most)
    for image, sample in list(zip(own[::step], chosen[::step]))[:most]:
        rng = np.random.default_rng(zlib.crc32(image.tobytes()))
        changed = spoilt(image, rng) | (resized(sample) if model in ("nuclei", "stars") else {})
        for name, one in changed.items():
            sets.setdefault(name, []).append(one)
    return sets


def stacks(split: str, most: int) -> dict[str, list[np.ndarray]]:
    """Stacks for a model of membranes."""
    chosen = stack_samples(StackDataSettings(split={"train": "val"}.get(split, split)))[: min(most, 12)]
    own, volumes = [one.read().image for one in chosen], data_folder() / "volumes"
    sets = {"simulated germline *": own}
    for name in ("ovule", "fibsem_train", "ovule_nuclei_a", "mouse_embryo_16cell"):
        sets[name] = [read_image(volumes / f"{name}_image.tif").pixels]
    for number, stack in enumerate(own[:5]):
        for name, one in spoilt(stack, np.random.default_rng(number)).items():
            sets.setdefault(name, []).append(one)
    return sets


def asked(model: str):
    """What tells whether a picture is unusual."""
    if model == "otsu":
        return lambda image: segment_image(image, "otsu").familiarity.unusual
    bundle = load_bundle(model)
    if model == "count-cells":
        return lambda image: count_image(image, bundle, flips=False).unlike.unusual
    if model == "membranes3d":
        return lambda image: segment_stack(image, bundle).familiarity.unusual
    return lambda image: segment_image(image, bundle).familiarity.unusual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--learn", action="store_true", help="describe the training pictures first")
    parser.add_argument("--split", default="test", choices=("test", "train"))
    parser.add_argument("--most", type=int, default=20, help="pictures of a set, but those that a model is for")
    given = parser.parse_args()
    if unknown := set(given.models) - set(MODELS):
        sys.exit(f"error: no model {', '.join(unknown)}; there are {', '.join(MODELS)}")
    if data_folder() is None:
        sys.exit("error: set CELLSEG_DATA to the folder with the data sets (see data/README.md)")
    print(f"{'model':12} {'set':28} {'named unlike':>14}")
    for model in given.models:
        started, totals = time.perf_counter(), {True: [], False: []}
        if given.learn:
            learn(model)
        is_unusual = asked(model)
        for name, pictures in pictures_for(model, given.split, given.most).items():
            named = [bool(is_unusual(one)) for one in pictures]
            totals[name.endswith("*")] += named
            print(f"{model:12} {name:28} {sum(named):5} of {len(named):4}", flush=True)
        alarms, detected = totals[True], totals[False]
        print(
            f"{model:12} {'':28} false alarms {np.mean(alarms):.1%} of {len(alarms)}, "
            f"detected {np.mean(detected):.1%} of {len(detected)} ({time.perf_counter() - started:.0f} s)\n",
            flush=True,
        )


if __name__ == "__main__":
    main()
