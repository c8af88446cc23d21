"""`cellseg segment` by each engine, side by side: `python tests/bench/engines.py [EDGE] [TURNS]`.

Simulates a picture of EDGE x EDGE px (2048) and segments it by the command, by each engine in turn, TURNS times (3), each in
a process of its own. Prints medians: seconds of the whole command, processor seconds, and those in the network; the ratio to PyTorch; the
peak of the memory. Beside them stands the quality: the largest difference of a probability (on the simulated picture of
`segment.engines`), objects that are pixel by pixel those of PyTorch, and, where CELLSEG_DATA names the data sets, AP on
dsb2018 test (80 fluorescence pictures), for reporting only. The quantised model is made here, of training pictures of dsb2018, or of simulated
ones without data; `--model DIR` names one that is there.

`--only speed` or `--only quality` prints one of the two.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from cellseg_nb.core import thread_count
from cellseg_nb.data.catalog import data_folder, samples
from cellseg_nb.data.io import read_labels, write_image
from cellseg_nb.data.simulate import simulate_nuclei

COMMAND = [sys.executable, "-c", "from cellseg_nb.run.cli import main; main()"]
LEAST = {"openvino": 1.4, "openvino-int8": 2.0}  # times as fast as PyTorch, asked for on 2048 x 2048 px


def segment(picture: Path, out: Path, model: str, engine: str) -> dict:
    """Run the command; its seconds, processor seconds, seconds in the network, and peak of memory."""
    command = [
        *COMMAND,
        "segment",
        str(picture),
        "--out",
        str(out),
        "--model",
        model,
        "--engine",
        engine,
        "--overwrite",
    ]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[2:])} ended with {process.returncode}")
    facts = json.loads((out / "run.json").read_text())
    return {
        "seconds": seconds,
        "processor": used.ru_utime + used.ru_stime,
        "network": facts["seconds"]["network"],
        "mib": used.ru_maxrss / 1024,
        "facts": facts["engines"][0],
    }


def quantised(folder: Path) -> str:
    """Make a quantised model of nuclei."""
    given = ["--dataset", "dsb2018", "--split", "train", "--kind", "fluorescence"]
    data = given if data_folder() else ["--dataset", "simulated-nuclei", "--split", "train"]
    out = folder / "nuclei-int8"
    made = subprocess.run(
        [*COMMAND, "model", "quantize", "nuclei", *data, "--out", str(out)], capture_output=True, text=True
    )
    if made.returncode:
        raise RuntimeError(made.stderr.strip())
    print(f"quantised, on {'dsb2018 train' if data_folder() else 'simulated pictures'}:\n{made.stdout.strip()}\n")
    return str(out)


def speed(picture: Path, folder: Path, models: dict[str, str], turns: int, edge: int) -> None:
    """Time whole commands in alternation."""
    runs = {engine: [] for engine in models}
    for turn in range(turns + 1):  # the first is warm-up: compiled code and files are at hand after it
        for engine, model in models.items():
            made = segment(picture, folder / engine, model, engine)
            if turn:
                runs[engine].append(made)
    middle = {
        engine: {key: statistics.median(one[key] for one in made) for key in ("seconds", "processor", "network", "mib")}
        for engine, made in runs.items()
    }
    labels = {engine: read_labels(folder / engine / "large_labels.tif") for engine in models}
    torch = middle["torch"]
    print(f"cellseg segment, {edge} x {edge} px, {thread_count()} threads, median of {turns}, in alternation")
    print(
        f"{'engine':<15}{'s':>8}{'ratio':>7}{'proc. s':>9}{'ratio':>7}{'network s':>11}{'ratio':>7}{'MiB':>7}  objects"
    )
    for engine, one in middle.items():
        ratios = {key: torch[key] / one[key] for key in ("seconds", "processor", "network")}
        same = np.array_equal(labels[engine], labels["torch"])
        asked = LEAST.get(engine)
        verdict = "" if asked is None else f"; asked for {asked}: {'yes' if ratios['seconds'] >= asked else 'NO'}"
        other = (labels[engine] != labels["torch"]).mean()
        print(
            f"{engine:<15}{one['seconds']:>8.1f}{ratios['seconds']:>7.2f}{one['processor']:>9.1f}{ratios['processor']:>7.2f}"
            f"{one['network']:>11.1f}{ratios['network']:>7.2f}{one['mib']:>7.0f}  {labels[engine].max()}, "
            f"{'the same pixels' if same else f'{other:.4%} of the pixels differ'}{verdict}"
        )
        print(f"{'':<15}{json.dumps(runs[engine][0]['facts'])}")


def quality(models: dict[str, str]) -> None:
    """Score each engine on test pictures."""
    from cellseg_nb.measure.matching import match, pool
    from cellseg_nb.models.bundle import load_bundle
    from cellseg_nb.segment.engines import with_engine
    from cellseg_nb.segment.image import SegmentSettings, segment_image

    named = ("dsb2018", "test", "fluorescence") if data_folder() else ("simulated-nuclei", "test")
    pictures, first = samples(*named), None
    print(f"{' '.join(named)}, {len(pictures)} pictures, pooled (for reporting only)")
    print(f"{'engine':<15}{'AP@.5':>8}{'mean AP':>9}{'difference from PyTorch':>25}  pictures with other pixels")
    for engine, model in models.items():
        bundle = with_engine(load_bundle(model), engine)
        found = [segment_image(one.image(), bundle, SegmentSettings(engine=engine)).labels for one in pictures]
        whole = pool([match(one.labels(), labels) for one, labels in zip(pictures, found)])
        scores = np.array([whole.ap[0], whole.mean_ap])
        first = (scores, found) if first is None else first
        other = sum(not np.array_equal(*both) for both in zip(found, first[1]))
        change = scores - first[0]
        print(f"{engine:<15}{scores[0]:>8.4f}{scores[1]:>9.4f}{change[0]:>+13.4f}{change[1]:>+12.4f}  {other}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("edge", nargs="?", type=int, default=2048)
    parser.add_argument("turns", nargs="?", type=int, default=3)
    parser.add_argument("--model")
    parser.add_argument("--only", choices=("speed", "quality"))
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        image, _ = simulate_nuclei((asked.edge, asked.edge), n_nuclei=asked.edge**2 // 2600, seed=3)
        picture = write_image(folder / "large.tif", image, "YX", pixel_size_um=0.5)
        models = dict.fromkeys(("torch", "openvino", "onnx"), "nuclei")
        models["openvino-int8"] = asked.model or quantised(folder)
        if asked.only != "quality":
            speed(picture, folder, models, asked.turns, asked.edge)
        if asked.only != "speed":
            quality(models)


if __name__ == "__main__":
    main()
