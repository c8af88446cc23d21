"""What users of the original programs ask for, each run as they would run it: a command, or a few lines in Python.

`python tests/experiments/wishes.py [WORD ...]` prints a Markdown table: wish, what was run, and what it printed (its first line,
or the one that tells). Words choose wishes by their names. Pictures are simulated, folders temporary, servers on this computer.
Exit code 1 = something did not work.
"""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

import numpy as np
import tifffile
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from nd2_writer import write_nd2

from cellseg_nb.data.germline import simulate_germline
from cellseg_nb.data.io import write_image, write_labels
from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.run.rehearsal import pretend_github

ROOT = Path(__file__).resolve().parents[2]
WITHOUT = "import sys; sys.modules[{!r}] = None; "  # as if it were not installed
CELLSEG = "from cellseg_nb.run.cli import main; main()"
PYTHON = [sys.executable, "-c"]
TINY = "network.encoder_depth=3 network.decoder_channels=[8,8,8] training.crops_per_epoch=8 training.batch_size=4"
TINY += " training.crop_px=64 training.epochs=1 training.device=cpu"
WALLS = "network.f_maps=8 network.levels=2 training.crops_per_epoch=2 training.crop_px=[8,32,32] training.epochs=1"
STARS = {
    "name": "stained",
    "task": "stars",
    "network": {"in_channels": 3, "n_rays": 8, "grid": [2, 2], "n_depth": 1, "n_filter_base": 8},
    "data": {"dataset": "rgb", "validation_fraction": 0.3},
    "training": {"epochs": 2, "steps_per_epoch": 100, "batch_size": 2, "patch_size": 64, "tensorboard": True},
}
COUNT = {
    "name": "tiny-count",
    "task": "count",
    "data": {"dataset": "parts", "split": "train", "validation_fraction": 0.3},
    "network": {"encoder_depth": 3, "decoder_channels": [8, 8, 8]},
    "training": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 2, "crop_px": 64, "device": "cpu"},
}
STUDY = {
    "data": {
        "sources": [
            {"dataset": "nuclei", "classes": ["small"], "class_column": "kind"},
            {"dataset": "simulated-nuclei", "split": "test", "images": 2},
        ]
    },
    "model": {"unet": {"network": {"encoder": "resnet18", "encoder_depth": 3, "decoder_channels": [8, 8, 8]}}},
    "training": {"unet": {"epochs": 1, "crops_per_epoch": 8, "batch_size": 4, "crop_px": 64}},
    "processing": {
        "train": ["n*"],
        "test": ["test-*"],
        "train_operations": ["fill_holes", {"rescale": 0.5, "interpolation": "cubic"}],
        "test_operations": [{"min_area_px": 20}],
    },
    "augmentations": {"rotation": {"p": 0.3, "degrees": 30}, "flip_turn": 0.5, "probability": {"blur": 0.1}},
    "evaluation": {"segmentation": {"device": "cpu"}, "metrics": ["f1", "pq"], "thresholds": [0.4, 0.6]},
}


def call(command: list[str], tells: str = "", code: int = 0, **variables: str) -> str:
    """Run a program in the current folder; the line that has the word `tells`, or the first one."""
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | paths | variables)
    text = done.stdout + done.stderr
    if done.returncode != code or "Traceback" in text:
        raise RuntimeError(f"exit code {done.returncode}: {text.strip()[-800:]}")
    lines = [line.strip() for line in text.splitlines() if line.strip() and tells in line]
    if not lines:
        raise RuntimeError(f"nothing says {tells!r}: {text.strip()[-800:]}")
    return lines[0]


def cellseg(line: str, tells: str = "", code: int = 0, without: str = "", **variables: str) -> str:
    """Run `cellseg LINE`, perhaps as if a package were not installed."""
    start = (WITHOUT.format(without) if without else "") + CELLSEG
    return call([*PYTHON, start, *shlex.split(line)], tells, code, **variables)


def python(code: str, tells: str = "") -> str:
    """Run a few lines of Python."""
    return call([*PYTHON, code], tells)


def folders() -> None:
    """Pictures, colours, stacks, points and a table of classes, where the wishes look for them."""
    rows = ["file,kind"]
    for n in range(5):
        image, labels = simulate_nuclei((96, 112), n_nuclei=10, seed=n)
        write_image(Path("nuclei/images", f"n{n}.tif"), image, "YX")
        write_labels(Path("nuclei/masks", f"n{n}.tif"), labels)
        part = Path("parts", "train" if n < 3 else "test")
        write_image(part / f"images/p{n}.tif", image, "YX")
        write_labels(part / f"masks/p{n}.tif", labels)
        rows.append(f"images/n{n}.tif,{'small' if n < 3 else 'large'}")
        colours = np.stack([image / image.max() * share for share in (255, 120, 200)], -1).astype(np.uint8)
        write_image(Path("rgb/images", f"c{n}.tif"), colours, "YXC")
        write_labels(Path("rgb/masks", f"c{n}.tif"), labels)
    Path("nuclei/index.csv").write_text("\n".join(rows) + "\n")
    rows = ["images,masks,train"]
    for n in range(3):
        pixels, cells = simulate_germline((16, 64, 72), seed=n)
        write_image(Path(f"s{n}.ome.tif"), pixels[0], "ZYX", (0.5, 0.2, 0.2))
        write_labels(Path(f"m{n}.tif"), cells)
        rows.append(f"s{n}.ome.tif,m{n}.tif,{int(n < 2)}")
    Path("stacks.csv").write_text("\n".join(rows) + "\n")
    write_nd2(
        Path("germline.nd2"), np.moveaxis((pixels / pixels.max() * 4000).astype(np.uint16), 0, 1), (0.5, 0.2, 0.2)
    )
    Path("marked").mkdir()
    Image.fromarray(np.zeros((120, 160), np.uint8)).save("marked/one.png")
    Path("plate..ANNA.csv").write_text("image,x,y\none,10,10\none,60,30\none,20,90\n")
    Path("plate..BEN.csv").write_text("image,x,y\none,11,10\none,60,31\n")
    Path("stars.yml").write_text(yaml.safe_dump(STARS))
    Path("count.yml").write_text(yaml.safe_dump(COUNT))


WISHES = {}  # name → (what is run, function that runs it and gives what it printed)


def wish(name: str, what: str):
    """List a function as a wish."""

    def listed(function):
        WISHES[name] = (what, function)
        return function

    return listed


def line(name: str, command: str, tells: str = "", code: int = 0, **how: str) -> None:
    """List a command as a wish."""
    shown = f"`cellseg {command}`" + (f", without {how['without']}" if "without" in how else "")
    WISHES[name] = (shown, lambda: cellseg(command, tells, code, **how))


def code(name: str, lines: str, tells: str = "") -> None:
    """List lines of Python as a wish."""
    WISHES[name] = (f"`{'; '.join(lines.strip().splitlines())}`", lambda: python(lines, tells))


# --- projects of Kedro ---------------------------------------------------------------------------------------------


@wish("a project", "`cellseg init study`, `cellseg pipeline run --project study`")
def project() -> str:
    cellseg("init study")
    Path("study/conf/local/parameters.yml").write_text(
        yaml.safe_dump(STUDY).replace("dataset: nuclei\n", f"dataset: {Path('nuclei').resolve()}\n")
    )
    return cellseg("pipeline run --project study", "run card")


@wish("preprocessing, separate lists", "fill_holes and half the size for training alone; the pictures of the project")
def lists() -> str:
    sizes = {
        part: {tifffile.imread(path).shape for path in Path("study/data").glob(f"**/{part}/images/*.tif")}
        for part in ("train", "test")
    }
    assert {(48, 56)} == sizes["train"] and (48, 56) not in sizes["test"], sizes
    return f"sizes, px: {sizes}"


@wish("classes", "`classes: [small]` of a source, in the project")
def classes() -> str:
    names = sorted(path.stem for path in Path("study/data").glob("**/train/images/*.tif"))
    assert len(names) == 3, names
    return f"learned from {', '.join(names)}"


@wish("a probability per transform", "`rotation: {p: 0.3, degrees: 30}`, in the project")
def probabilities() -> str:
    (path,) = Path("study/data").glob("**/augmentations.png")
    (file,) = Path("study/data").glob("**/config.yml")
    config = yaml.safe_load(file.read_text())["augmentation"]
    assert config["rotation_degrees"] == 30 and config["probability"]["rotation"] == 0.3
    return f"{path.name}, {path.stat().st_size:,} bytes; probability {config['probability']}"


@wish("metrics and thresholds in a project", "`metrics: [f1, pq]`, `thresholds: [0.4, 0.6]`")
def scores() -> str:
    first = Path("study/data/08_reporting/metrics.csv").read_text().splitlines()[0]
    assert "f1_40" in first and "pq_60" in first, first
    return first


line(
    "metrics and thresholds by command",
    "evaluate --truth nuclei/masks --pred nuclei/masks --metrics f1,ap --thresholds .3,.6",
)
line("tags", "pipeline list --project study", "data_download")
line("steps by tag", "pipeline run --project study --tag model_validation", "score_test: done")


@wish("kedro's own command", "`kedro run --tags results_visualization` in the project")
def kedro() -> str:
    os.chdir("study")
    try:
        return call([sys.executable, "-m", "kedro", "run", "--tags", "results_visualization"], "ompleted")
    finally:
        os.chdir("..")


@wish("kedro viz", "`cellseg pipeline show --viz --no-browser --project study`")
def viz() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = shlex.split(f"pipeline show --viz --no-browser --project study --port {port}")
    with Path("viz.log").open("w") as log:
        running = subprocess.Popen([*PYTHON, CELLSEG, *asked], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 180
        while time.monotonic() < until and running.poll() is None:
            try:
                shown = json.load(urlopen(f"http://127.0.0.1:{port}/api/main", timeout=5))
                break
            except OSError:
                time.sleep(0.5)
        else:
            raise RuntimeError(Path("viz.log").read_text()[-800:])
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(60)
    steps = [one["name"] for one in shown["nodes"] if one["type"] == "task"]
    return f"{len(steps)} steps with tags {', '.join(sorted(one['name'] for one in shown['tags']))}; Ctrl+C ends it"


line("kedro viz is missing", "pipeline show --viz --project study", "kedro_viz", 2, without="kedro_viz")

# --- training ------------------------------------------------------------------------------------------------------

line("label smoothing", f"train nuclei data.dataset=simulated-nuclei data.kind=null data.images=4 {TINY} "
     "training.label_smoothing=0.1 training.tensorboard=true --out runs/smooth", "epoch 0")  # fmt: skip
line("RGB StarDist training, `task: stars`", "train stars.yml --out runs/stained", "model:")
line("an RGB picture segmented", "segment rgb/images/c3.tif --model runs/stained/model --out found", "objects")
line("TensorBoard is missing", "train stars.yml --out runs/none", "tensorboard", 2, without="tensorboard")


@wish("TensorBoard", "`tensorboard --inspect --logdir runs/NAME/tensorboard`, of the U-Net and of StarDist")
def tensorboard() -> str:
    found = {}
    for name in ("smooth", "stained"):
        start = [sys.executable, "-m", "tensorboard.main", "--inspect", "--logdir", f"runs/{name}/tensorboard"]
        done = subprocess.run(start, capture_output=True, text=True)
        tags = {one.strip() for one in done.stdout.splitlines() if "/" in one and one.startswith("   ")}
        assert any(one.startswith("loss/") for one in tags) and "crop/0" in tags, done.stdout + done.stderr
        found[name] = f"{len(tags)} tags"
    return str(found)


# --- stacks --------------------------------------------------------------------------------------------------------

line("a table with images, masks, train", f"train membranes3d data.dataset=stacks.csv data.split=null {WALLS} training.device=cpu "
     "start_from=null --out runs/walls", "epoch 0")  # fmt: skip
code("patches by key, with one's own transforms", """
from torch.utils.data import DataLoader
from cellseg_nb.train.patches import StackPatches, show_batch
brighter = lambda item: item | {"image": item["image"] * 1.2}
patches = StackPatches("stacks.csv", (8, 32, 32), [brighter], targets=("edges",), weights=True, length=4)
batch = next(iter(DataLoader(patches, 2)))
show_batch(batch).savefig("batch.png")
print({key: tuple(value.shape) for key, value in batch.items()})
""")  # fmt: skip
code("one's own model, optimiser, scheduler and loss", """
import torch
from torch.utils.data import DataLoader
from cellseg_nb.train.own_training import fit
from cellseg_nb.train.patches import StackPatches
how = {"targets": ("edges",), "length": 4}
loaders = [DataLoader(StackPatches("stacks.csv", (8, 32, 32), train=part, **how), 2) for part in (True, False)]
net = torch.nn.Conv3d(1, 1, 3, padding=1)
sgd = torch.optim.SGD(net.parameters(), lr=0.1)
fall = torch.optim.lr_scheduler.StepLR(sgd, 1)
done = fit(net, loaders, torch.nn.BCEWithLogitsLoss(), sgd, fall, epochs=2, out="runs/own", device="cpu")
print(done.log.columns.tolist(), len(done.log), done.best)
""", "[")  # fmt: skip
line("ND2", "segment3d germline.nd2 --channel membranes --model membranes3d --device cpu --out nikon", "germline")

# --- counting ------------------------------------------------------------------------------------------------------

code("files, bytes and arrays; `counts, plots`", """
from pathlib import Path
from cellseg_nb.data.io import read_image
from cellseg_nb.run.count import count
path = Path("nuclei/images/n0.tif")
counts, plots = count([path.open("rb"), path.read_bytes(), read_image(path).pixels, "nuclei/images/n1.tif"])
print({name: round(n, 1) for name, n in counts.items()}, type(plots["n0"]).__name__)
""")  # fmt: skip


@wish(
    "the release flow by one command; `init_model(None)`",
    "`cellseg model release count.yml --version 1.0 --evaluate test`, twice",
)
def release() -> str:
    asked = "model release count.yml --version 1.0 --evaluate test --repo lab/models"
    with pretend_github(repo="lab/models") as github:
        keys = {"GITHUB_TOKEN": "secret", "GITHUB_API_URL": github.api, "XDG_CACHE_HOME": str(Path("user").resolve())}
        first, again = cellseg(asked, "verify", **keys), cellseg(asked, "published before", **keys)
        ask = (
            "from cellseg_nb.run.releases import init_model; print(init_model(None, 'tiny-count', 'lab/models').folder)"
        )
        latest = call([*PYTHON, ask], "v1.0", **keys)
    return f"{first}; again: {again.split(': ')[0]}; init_model(None): {Path(latest).name}"


line("name..ANNOTATOR", "points import plate..ANNA.csv plate..BEN.csv --images marked --out points", "annotators")
line("annotators compared", "points agree points", "ANNA")


@wish("NISSING", "`one,NISSING` in data_quality.csv, then `cellseg points import` again")
def nissing() -> str:
    path = Path("points/data_quality.csv")
    head, *rows = path.read_text().splitlines()
    at = head.split(",").index("annotation_status")
    cells = [row.split(",") for row in rows]
    path.write_text("\n".join([head, *(",".join([*c[:at], "NISSING", *c[at + 1 :]]) for c in cells)]) + "\n")
    return cellseg("points import plate..ANNA.csv --images marked --out points", "MISSING")


# --- layout and lint -----------------------------------------------------------------------------------------------


@wish("pre-commit with ruff", "`pre-commit run --all-files` in a fresh clone")
def hooks() -> str:
    subprocess.run(["git", "clone", "--quiet", ROOT, "clone"], check=True)
    Path("clone/.venv").symlink_to(sys.prefix)
    os.chdir("clone")
    try:
        call([sys.executable, "-m", "pre_commit", "run", "--all-files"], PYTHONPATH=os.getcwd())
        changed = subprocess.run(["git", "diff", "--name-only"], capture_output=True, text=True).stdout
    finally:
        os.chdir("..")
        shutil.rmtree("clone")
    assert not changed, changed
    return "all hooks passed, no file was changed"


def main(words: list[str]) -> int:
    """Run wishes; the number of those that failed decides."""
    failed, here = 0, os.getcwd()
    print("| wish | what was run | s | what it printed |\n| --- | --- | --- | --- |", flush=True)
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        folders()
        for name, (what, run) in WISHES.items():
            if words and not any(word in name for word in words):
                continue
            started = time.monotonic()
            try:
                said = run()
            except Exception as error:  # whatever it is, the next one is run
                failed, said = failed + 1, f"**failed**: {error}"
            said = " ".join(said.replace(folder, "…").replace("|", "/").split())
            shown = said if said.startswith("**") else said[:220]
            print(f"| {name} | {what.replace('|', '/')} | {time.monotonic() - started:.0f} | {shown} |", flush=True)
        os.chdir(here)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
