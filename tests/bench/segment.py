"""Where the time of `cellseg segment` goes: libraries, network, post-processing, and everything else.

Simulates a picture, segments it by the command in a process of its own (once on a small picture before, so that
compiled code and files are at hand), and prints seconds per megapixel. The rest (reading, measuring, tables,
outlines, report) must stay below 15 % of the time without imports.

`python tests/bench/segment.py [EDGE] [MODEL]`: edge of the picture in px (2048), model (nuclei).
"""

import json
import sys
import time
from pathlib import Path
from subprocess import run
from tempfile import TemporaryDirectory

from cellseg_nb.data.io import write_image
from cellseg_nb.data.simulate import simulate_nuclei

PARTS = ("imports", "network", "postprocessing", "rest")
MOST_REST = 0.15


def segment(picture: Path, out: Path, model: str) -> dict[str, float]:
    """Run the command; seconds of each part, and of the whole process."""
    code = "from cellseg_nb.run.cli import main; main()"
    command = [sys.executable, "-c", code, "segment", str(picture), "--out", str(out)]
    started = time.perf_counter()
    run([*command, "--model", model], check=True, capture_output=True)
    whole = time.perf_counter() - started
    facts = json.loads((out / "run.json").read_text())
    seconds = dict.fromkeys(PARTS, 0.0) | facts["seconds"]
    # starting Python and the command itself comes before the run looks at the clock
    seconds["imports"] += max(whole - sum(seconds.values()), 0)
    return seconds


def main():
    edge = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    model = sys.argv[2] if len(sys.argv) > 2 else "nuclei"
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        for name, size in (("small", 256), ("large", edge)):
            image, _ = simulate_nuclei((size, size), n_nuclei=size**2 // 2600, seed=3)
            write_image(folder / f"{name}.tif", image, "YX", pixel_size_um=0.5)
        segment(folder / "small.tif", folder / "warm", model)
        seconds = segment(folder / "large.tif", folder / "out", model)
        n_objects = json.loads((folder / "out" / ".resume" / "segment" / "large.json").read_text())["row"]["count"]
    megapixels = edge**2 / 1e6
    working = sum(seconds.values()) - seconds["imports"]
    print(f"cellseg segment, model {model}, {edge} x {edge} px, {n_objects} objects found")
    for part in PARTS:
        share = f"{seconds[part] / working:7.1%} of the time without imports" if part != "imports" else ""
        print(f"  {part:<15}{seconds[part]:8.2f} s {seconds[part] / megapixels:8.3f} s/Mpx {share}")
    share = seconds["rest"] / working
    print(f"  the rest is {share:.1%}, asked for: below {MOST_REST:.0%}: {'yes' if share < MOST_REST else 'NO'}")


if __name__ == "__main__":
    main()
