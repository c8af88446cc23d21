"""Reading slides beside OpenSlide and TiffSlide, and decoding run lengths: `python tests/bench/slides.py`.

The slide is a simulated one of 10,240 x 10,240 pixels in JPEG tiles of 256 or 512 pixels. All of it is read tile by tile; each package in a
process of its own, in one thread, in turns. The number is millions of pixels per second of processor time, which suffers less
when the machine is busy, and the ratio the median over the turns. The floor is what decoding alone takes: tifffile's segments, one after the
other, without putting them anywhere. Memory is the peak of the whole process, with Python and all packages (Linux: VmHWM).

Run lengths: 585 discs on a slide of 31,299 x 44,066 pixels, about as many runs and as long as those of a real one. They are decoded whole
into zeros that are there, and into new memory, beside a Python loop over the runs; both begin with the text. New memory is 1.4 GB, and what the
system takes to give it is paid by both: once, in a new process, and again, in one that had and gave back as much.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

SIZE, TILES, TURNS = 10_240, (256, 512), 3
READERS = ("ours", "openslide", "tiffslide", "decoding alone")
SHAPE, N_DISCS, DIAMETER = (31_299, 44_066), 585, 275


def picture(top: int, rows: int = 256) -> np.ndarray:
    """Rows of something coloured with detail and noise."""
    rng = np.random.default_rng(top)
    y, x = np.mgrid[top : top + rows, :SIZE].astype(np.float32)
    waves = [200 + 40 * np.sin(x / 37 + k) * np.cos(y / (23 + 5 * k)) for k in range(3)]
    pixels = np.stack(waves, -1) + rng.normal(0, 6, (rows, SIZE, 1)).astype(np.float32)
    return pixels.clip(0, 255).astype(np.uint8)


def reader(name: str, path: Path):
    """A function that reads the rectangle (y, x, size)."""
    if name == "ours":
        from cellseg_nb.data.slides import open_slide

        slide = open_slide(path)
        return lambda y, x, n: slide.read(y, y + n, x, x + n)
    if name == "openslide":
        from openslide import OpenSlide

        slide = OpenSlide(path)
        return lambda y, x, n: np.asarray(slide.read_region((x, y), 0, (n, n)).convert("RGB"))
    from tiffslide import TiffSlide

    slide = TiffSlide(path)
    return lambda y, x, n: slide.read_region((x, y), 0, (n, n), as_array=True)


def read_all(name: str, path: Path, tile_px: int) -> dict:
    """Processor seconds and peak memory of reading the slide, in this process."""
    if name == "decoding alone":
        import tifffile

        with tifffile.TiffFile(path) as tif:
            started = time.process_time()
            for _ in tif.pages[0].segments(maxworkers=1):
                pass
            seconds = time.process_time() - started
    else:
        read = reader(name, path)
        assert read(0, 0, tile_px).shape == (tile_px, tile_px, 3)
        started = time.process_time()
        for y in range(0, SIZE, tile_px):
            for x in range(0, SIZE, tile_px):
                read(y, x, tile_px)
        seconds = time.process_time() - started
    status = Path("/proc/self/status")
    peak = int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1024 if status.exists() else float("nan")
    return {"seconds": seconds, "mb": peak}


def compare_readers(path: Path, tile_px: int) -> None:
    """Print speed and memory for one size of tiles."""
    found = {name: [] for name in READERS}
    for _ in range(TURNS):
        for name in READERS:
            found[name].append(run(name, path, tile_px))
    seconds = {name: np.array([one["seconds"] for one in results]) for name, results in found.items()}
    for name in READERS:
        speed, peak = SIZE**2 / 1e6 / np.median(seconds[name]), max(one["mb"] for one in found[name])
        ratio = np.median(seconds[name] / seconds["ours"])
        print(
            f"  tiles of {tile_px}: {name:15} {speed:6.1f} Mpx/s, peak {peak:4.0f} MiB; ours is {ratio:.2f} x as fast"
        )


def discs() -> str:
    """Run lengths of discs in columns, as text."""
    height, width = SHAPE
    x = np.arange(DIAMETER)
    half = np.sqrt(np.maximum((DIAMETER / 2) ** 2 - (x + 0.5 - DIAMETER / 2) ** 2, 0)).astype(int)
    rng = np.random.default_rng(0)
    starts, lengths = [], []
    for number in range(N_DISCS):  # in a grid, each somewhere in its field
        top, left = number // 39 * 2000 + rng.integers(300, 1700), number % 39 * 1100 + rng.integers(0, 800)
        starts.append((left + x) * height + top - half)
        lengths.append(2 * half)
    starts, lengths = np.concatenate(starts), np.concatenate(lengths)
    order = np.argsort(starts)
    return " ".join(map(str, np.stack([starts[order] + 1, lengths[order]], 1).ravel()))


def python_loop(text: str, out: np.ndarray | None = None) -> np.ndarray:
    """The usual decoder."""
    numbers = [int(one) for one in text.split()]
    flat = np.zeros(SHAPE[0] * SHAPE[1], np.uint8) if out is None else out.T.reshape(-1)
    for start, length in zip(numbers[::2], numbers[1::2]):
        flat[start - 1 : start - 1 + length] = 1
    return flat.reshape(SHAPE[::-1]).T


def ours(text: str, out: np.ndarray | None = None) -> np.ndarray:
    from cellseg_nb.data.rle import parse_rle

    return parse_rle(text, SHAPE).mask(out)


DECODERS = {"ours": ours, "python loop": python_loop}


def decode(name: str, n_times: int) -> dict:
    """Processor seconds of decoding into new memory, time after time, in this process."""
    text, spent = discs(), []
    if name == "ours":  # compiled once
        from cellseg_nb.data.rle import decode_rle

        decode_rle("1 3", (2, 2))
    for _ in range(n_times):
        started = time.process_time()
        DECODERS[name](text)
        spent.append(time.process_time() - started)
    return {"seconds": spent}


def compare_runs() -> None:
    """Print times of decoding run lengths."""
    from cellseg_nb.data.rle import parse_rle

    text, there = discs(), np.zeros(SHAPE[::-1], np.uint8).T
    masks = [one(text, there).copy() for one in DECODERS.values()]
    assert (masks[0] == masks[1]).all()
    del masks
    spent = {name: [] for name in DECODERS}
    for _ in range(5):
        for name, one in DECODERS.items():
            started = time.process_time()
            one(text, there)
            spent[name].append(time.process_time() - started)
    del there
    say_runs("into zeros that are there", text, spent)
    spent = {name: [run(name, "decode", 3)["seconds"] for _ in range(TURNS)] for name in DECODERS}
    say_runs("into new memory, once", text, {name: [one[0] for one in times] for name, times in spent.items()})
    say_runs(
        "into new memory, again", text, {name: sum((one[1:] for one in times), []) for name, times in spent.items()}
    )
    runs = parse_rle(text, SHAPE)
    started = time.process_time()
    for top in range(0, 20_480, 512):
        runs.read(top, top + 512, 20_000, 20_512)
    print(f"  a region of 512 x 512 pixels: {(time.process_time() - started) / 40 * 1e6:.0f} µs")


def say_runs(kind: str, text: str, spent: dict) -> None:
    mine, loop = (np.median(spent[name]) for name in DECODERS)
    print(
        f"  {len(text.split()) // 2:,} runs {kind}: ours {mine:.3f} s, python loop {loop:.3f} s, {loop / mine:.1f} x as fast"
    )


def run(*arguments) -> dict:
    """What this script says in a process of its own."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main():
    from cellseg_nb.data.slides import write_pyramid

    print(f"{SIZE:,} x {SIZE:,} pixels tile by tile, processor time, median of {TURNS}")
    with tempfile.TemporaryDirectory() as folder:
        for tile_px in TILES:
            bands = (picture(top) for top in range(0, SIZE, 256))
            path = write_pyramid(Path(folder) / f"{tile_px}.tif", bands, 0.25, shape=(SIZE, SIZE, 3), tile_px=tile_px)
            compare_readers(path, tile_px)
    print("run lengths, processor time, median of 5")
    compare_runs()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if len(sys.argv) > 1:
        name, what, number = sys.argv[1:]
        print(json.dumps(decode(name, int(number)) if what == "decode" else read_all(name, Path(what), int(number))))
    else:
        main()
