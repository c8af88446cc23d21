"""Which layers stay in full precision when a model is quantised: accuracy and time of each choice, side by side.

    python tests/experiments/quantise.py [MODEL] [--shown N] [--held N]

MODEL (nuclei) is quantised on pictures of dsb2018 train, and scored on those that `train.quantise` keeps aside (test is not looked
at). Prints for each choice: mean AP and AP@.5 over all objects, what is lost of them, the mean and largest difference of a
probability, and the time that 512 x 512 px take.
"""

import argparse
import statistics
import time
from dataclasses import replace

import numpy as np

from cellseg_nb.data.catalog import samples
from cellseg_nb.models.bundle import load_bundle
from cellseg_nb.models.engines import INT8, EngineNetwork, compiled, openvino_graph
from cellseg_nb.segment.engines import int8_precision, with_engine
from cellseg_nb.train.quantise import (
    ENCODER,
    calibration_crops,
    convolutions,
    kept_layers,
    quantised_graph,
    quantising_cost,
    split_pictures,
)
from cellseg_nb.train.tune import predict_samples

TURNS = 15


def choices(graph) -> dict[str, list[str]]:
    """Layers that stay in full precision, by what the choice is called."""
    every = convolutions(graph)
    encoder, depthwise = [one for one in every if ENCODER in one], [one for one in every if "GroupConv" in one]
    return {
        "all are quantised": [],
        "all but first, depthwise, last 3": [every[0], *depthwise, *every[-3:]],
        "the decoder alone": encoder,
        "all but a third of the encoder": kept_layers(graph),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="nuclei")
    parser.add_argument("--shown", type=int, help="calibrate on so many pictures (100)")
    parser.add_argument("--held", type=int, help="score on so many pictures (40)")
    asked = parser.parse_args()
    bundle = load_bundle(asked.model)
    shown, held = split_pictures(samples("dsb2018", "train", "fluorescence"))
    shown, held = shown[: asked.shown], held[: asked.held]
    crops, graph = list(calibration_crops(shown, bundle)), openvino_graph(bundle.network, 1)
    exact = predict_samples(with_engine(bundle, "openvino", precision="float32"), held)
    fast, whole = {one: compiled(graph, one, threads=1) for one in ("float32", int8_precision())}, None
    print(f"{asked.model}: calibrated on {len(shown)} pictures, scored on {len(held)} others, all of dsb2018 train")
    print(f"layers that are not quantised: {int8_precision()}")
    print(f"{'':<40}{'mean AP':>8}{'lost':>8}{'AP@.5':>8}{'lost':>8}{'mean diff.':>11}{'largest':>9}")
    for name, kept in choices(graph).items():
        made = quantised_graph(graph, crops, kept)
        fast[name] = compiled(made, int8_precision(), threads=1)
        rough = replace(bundle, network=EngineNetwork(bundle.network, fast[name], INT8, "int8"))
        cost = quantising_cost(exact, predict_samples(rough, held), bundle.specification.postprocessing)
        if whole is None:
            whole = cost.scores.loc["full precision"]
            print(f"{'full precision':<40}{whole['mean AP']:>8.4f}{'':>8}{whole['AP@.5']:>8.4f}")
        row = cost.scores.loc["int8"]
        print(
            f"{name:<40}{row['mean AP']:>8.4f}{whole['mean AP'] - row['mean AP']:>+8.4f}{row['AP@.5']:>8.4f}"
            f"{whole['AP@.5'] - row['AP@.5']:>+8.4f}{cost.mean_difference:>11.5f}{cost.largest_difference:>9.3f}",
            flush=True,
        )
    batch, seconds = np.random.default_rng(0).random((1, 1, 512, 512), np.float32), {name: [] for name in fast}
    for _ in range(TURNS):
        for name, compute in fast.items():
            started = time.process_time()
            compute(batch)
            seconds[name].append(time.process_time() - started)
    print(f"\n512 x 512 px, one thread, milliseconds of the processor, median of {TURNS}, in alternation")
    for name, one in seconds.items():
        print(f"{name:<40}{1e3 * statistics.median(one):>8.0f}")


if __name__ == "__main__":
    main()
