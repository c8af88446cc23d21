"""What predicting a whole slide costs beside the network: `python tests/bench/slide_prediction.py [--sizes]`.

A simulated slide of 10,000 x 10,000 pixels is predicted by `cellseg slide` with the shipped model, at full resolution, at four times as fine a one as
the model's, and at that of the model: processor seconds within the network, and all others (reading, tissue, blending, run lengths, mask pyramid, outlines,
tables, overlay, report), and the peak memory of the process. Then a slide of 20,000 x 20,000 pixels is predicted with several sizes of tiles and overlaps, which
says how much of the mask depends on the tiles; and stored at half the size, as a scanner with half the magnification would: the count should be the same.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIZE = 10_000
RESOLUTIONS = (0.5, 2.0, 8.0)  # µm per px
TILES = ((1024, 96), (768, 72), (512, 64), (384, 48), (256, 32))  # edge, overlap; px


def predict(path: Path, out: Path, **settings) -> dict:
    """Predict in this process; seconds in the network and beside it, peak memory, count."""
    import cellseg_nb.segment.predict as predicting
    from cellseg_nb.run.runner import run
    from cellseg_nb.run.tasks.slide import Slides, SlideSettings

    spent, network = [0.0], predicting.run_network

    def timed(*arguments, **options):
        started = time.process_time()
        found = network(*arguments, **options)
        spent[0] += time.process_time() - started
        return found

    predicting.run_network = timed
    task = Slides(SlideSettings(**settings))
    task.check()
    from cellseg_nb.segment.slide import slide_for

    with slide_for(path, task.bundles, task.settings) as slide:
        slide.read(0, 8, 0, 8)
    started = time.process_time()
    counts = run(task, path, out).counts
    total = time.process_time() - started
    status = Path("/proc/self/status")
    peak = int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1024 if status.exists() else float("nan")
    return {"network": spent[0], "beside": total - spent[0], "mb": peak, "count": int(counts["count"].sum())}


def run_apart(path: Path, out: Path, **settings) -> dict:
    """The same in a process of its own."""
    call = [sys.executable, __file__, "predict", str(path), str(out), json.dumps(settings)]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def mask(out: Path) -> np.ndarray:
    from cellseg_nb.data.io import read_image

    return read_image(next(out.glob("*_mask.ome.tif"))).pixels > 0


def main() -> None:
    from cellseg_nb.data.simulate_slides import simulate_slide
    from cellseg_nb.data.slides import open_slide, write_pyramid

    with tempfile.TemporaryDirectory() as folder:
        path, half = Path(folder) / "slide.tif", Path(folder) / "half.tif"
        truth = simulate_slide(path, (SIZE, SIZE), seed=7)
        for um_per_px in RESOLUTIONS:
            found = run_apart(path, Path(folder) / f"at_{um_per_px:g}", um_per_px=um_per_px)
            share = found["beside"] / (found["beside"] + found["network"])
            print(
                f"  {SIZE:,}² pixels of .5 µm, predicted at {um_per_px:g} µm: network {found['network']:.1f} s, all else {found['beside']:.1f} s "
                f"({share:.0%}); peak {found['mb']:.0f} MiB; {found['count']} objects, {len(set(truth.objects().tolist()))} are there"
            )
        truth, first = simulate_slide(path, (2 * SIZE, 2 * SIZE), seed=8), None
        for tile_px, overlap_px in TILES:
            out = Path(folder) / f"tiles_{tile_px}"
            count = run_apart(path, out, tile_px=tile_px, overlap_px=overlap_px)["count"]
            first = mask(out) if first is None else first
            print(
                f"  tiles of {tile_px} px that share {overlap_px}: {(first != mask(out)).mean():.4%} of the pixels differ from the first; {count} objects"
            )
        with open_slide(path, reduce=2) as slide:
            write_pyramid(
                half,
                (slide.read(y, min(y + 256, slide.shape[0])) for y in range(0, slide.shape[0], 256)),
                1.0,
                (*slide.shape, 3),
            )
        counts = [run_apart(one, Path(folder) / one.stem)["count"] for one in (path, half)]
        there = len(set(truth.objects().tolist()))
        print(f"  stored at 20x and at 10x: {counts[0]} and {counts[1]} objects; {there} are there")


if __name__ == "__main__":
    if sys.argv[1:2] == ["predict"]:
        print(json.dumps(predict(Path(sys.argv[2]), Path(sys.argv[3]), **json.loads(sys.argv[4]))))
    else:
        main()
