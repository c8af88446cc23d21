"""Each model in each format: largest difference, size, scores of a round trip on dsb2018 test, and what `bioimageio test` says.

    python tests/experiments/exchange.py [--pictures 20] [--test]

Scores are AP over all nuclei of the fluorescence pictures (split test, for reporting only); without --pictures of all of them.
--test runs the command of BioImage.IO on every package.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from cellseg_nb.data.catalog import locate, samples
from cellseg_nb.data.io import luminance
from cellseg_nb.measure.matching import match, pool
from cellseg_nb.models.bundle import load_bundle
from cellseg_nb.models.exchange import TARGETS, export_model, import_model
from cellseg_nb.segment.image import segment_image

BUNDLES = ("nuclei", "count-cells", "membranes3d", "glomeruli", "marks", "stars")
FORMATS = ("onnx", "torchscript", "bioimageio")


def score(model, pictures) -> str:
    """AP@.5 and mean AP of a model."""
    results = []
    for one in pictures:
        image = one.image()
        pixels = getattr(image, "pixels", image)
        gray = luminance(pixels) if pixels.ndim == 3 else pixels
        results.append(match(one.labels(), segment_image(gray, model).labels))
    table = pool(results).table()
    return f"{table['ap'].iloc[0]:.4f} {table['ap'].mean():.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, help="so many pictures alone")
    parser.add_argument("--test", action="store_true", help="run bioimageio test on packages")
    chosen = parser.parse_args()
    pictures = samples("dsb2018", split="test", kind="fluorescence") if locate("dsb2018") else []
    pictures = pictures[: chosen.pictures]
    print(
        f"{len(pictures)} pictures; AP@.5, mean AP of nuclei as it is: {score(load_bundle('nuclei'), pictures) if pictures else 'left out'}"
    )
    print(f"{'model':<12} {'format':<12} {'difference':>10} {'MB':>6}  AP@.5  mean AP")
    with TemporaryDirectory() as folder:
        for name in BUNDLES:
            for to in FORMATS:
                path = Path(folder) / f"{name}{TARGETS[to]}"
                try:
                    difference = export_model(load_bundle(name), to, path)
                except ValueError as error:
                    print(f"{name:<12} {to:<12} refused: {error}")
                    continue
                row = f"{name:<12} {to:<12} {difference:>10.1e} {path.stat().st_size / 1e6:>6.1f}"
                if name == "nuclei" and pictures:
                    row += f"  {score(load_bundle(import_model(path, Path(folder) / to)), pictures)}"
                if to == "bioimageio" and chosen.test:
                    program = Path(sys.executable).with_name("bioimageio")
                    run = subprocess.run([program, "test", path], capture_output=True, text=True)
                    row += f"  bioimageio test: {'passed' if run.returncode == 0 else 'failed'}"
                print(row, flush=True)


if __name__ == "__main__":
    main()
