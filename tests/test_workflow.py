"""Projects and pipelines: a tiny study from download to report, resumed, killed, changed and verified."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import urlopen
from xml.etree import ElementTree

import pandas as pd
import pytest
import yaml
from test_cli import error_of, run

from cellseg_nb.core import file_sha256
from cellseg_nb.data.io import read_labels
from cellseg_nb.data.sbsst265 import simulate_sbsst265

START = [sys.executable, "-c", "from cellseg_nb.run.cli import main; main()"]
KEDRO = [sys.executable, "-m", "kedro"]
TINY = {
    "data": {
        "sources": [
            {"dataset": "simulated-nuclei", "split": "train", "images": 3},
            {"dataset": "simulated-nuclei", "split": "test", "images": 2},
        ]
    },
    "model": {
        "unet": {"network": {"encoder": "resnet18", "encoder_depth": 3, "decoder_channels": [16, 8, 8]}},
        "stardist": {"network": {"n_rays": 8, "n_depth": 1, "n_filter_base": 8}},
    },
    "training": {
        "unet": {"epochs": 1, "crops_per_epoch": 8, "batch_size": 4, "crop_px": 64},
        "stardist": {"epochs": 1, "steps_per_epoch": 20, "batch_size": 2, "patch_size": 64},
    },
    "evaluation": {"segmentation": {"device": "cpu"}},
    "pictures": {"overlays": 1, "worst": 1, "best": 1},
}
ORDER = [
    "download_data",
    "process_data",
    "set_augmentations",
    "draw_augmentations",
    "train_model",
    "segment_test",
    "score_test",
    "tabulate_scores",
    "draw_results",
]


def ran(result) -> set[str]:
    """Names of the steps that ran, from what was printed."""
    lines = [line.split(": ") for line in result.stdout.splitlines() if ": done in " in line]
    return {name for name, *_ in lines}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A project in which everything was run once."""
    project = tmp_path_factory.mktemp("projects") / "study"
    run("init", project)
    (project / "conf/local/parameters.yml").write_text(yaml.safe_dump(TINY))
    result = run("pipeline", "run", "--project", project)
    assert ran(result) == set(ORDER)
    assert "run card: " in result.stdout and "simulated-nuclei" in result.stdout
    return project


@pytest.fixture
def study(finished, tmp_path) -> Path:
    """A copy of it that a test may change; moving a project changes nothing."""
    return Path(shutil.copytree(finished, tmp_path / "moved"))


def test_the_whole_writes_scores_pictures_and_a_card(finished):
    reports = finished / "data/08_reporting"
    table = pd.read_csv(reports / "metrics.csv")
    assert table["group"].tolist() == ["simulated-nuclei", "all"]
    assert {"ap_50", "ap_70", "ap_90", "mean_ap", "pixel_f1", "pixel_iou"} <= set(table)
    assert json.loads((reports / "metrics.json").read_text())["groups"][1]["images"] == 2
    names = {path.name.split("_")[0] for path in (reports / "pictures").iterdir()}
    assert names == {"worst", "best", "overlay", "scores.png"}
    card = json.loads((reports / "run_card.json").read_text())
    assert card["error"] is None and card["seeds"] == {"model": 1}
    assert set(card["steps"]) == set(ORDER) and all(one["ran"] for one in card["steps"].values())
    assert card["settings"]["training"]["unet"]["crop_px"] == 64
    assert {"python", "kedro", "torch"} <= set(card["versions"])
    assert "train/images/train-000.tif" in card["places"]["prepared"]["files"]
    assert card["model"]["files"]["weights.safetensors"]
    assert not list(finished.rglob(".partial-*"))


def test_resume_leaves_out_what_has_not_changed(study):
    result = run("pipeline", "run", "--project", study, "--resume")
    assert result.stdout.count("skipped, nothing has changed") == len(ORDER)
    (study / "data/08_reporting/metrics.csv").unlink()
    result = run("pipeline", "run", "--project", study, "--resume")
    assert ran(result) == {"tabulate_scores"}
    assert "tabulate_scores: runs, metrics_table is not there" in result.stdout


@pytest.mark.parametrize(
    "change, expected",
    [
        ("pictures.worst=0", {"draw_results"}),
        ("evaluation.segmentation.min_area_px=2000", {*ORDER[5:]}),
        ("training.unet.learning_rate=0.02", {*ORDER[4:]}),
        ("processing.test=[test-000]", {"process_data", "draw_augmentations", *ORDER[4:]}),
    ],
)
def test_a_change_runs_exactly_what_comes_after_it(study, change, expected):
    result = run("pipeline", "run", "--project", study, "--resume", "--params", change)
    if "train_model" in expected:  # two models may find the same: then the scores stand
        least = expected - {"score_test", "tabulate_scores", "draw_results"}
        assert least <= ran(result) <= expected
    else:
        assert ran(result) == expected
    assert f": runs, {change.split('=')[0]} was " in result.stdout


def test_large_pictures_are_drawn_and_looked_after(study):
    change = ("--params", "evaluation.segmentation.large_mpx=0.01")
    again = ("pipeline", "run", "--project", study, "--resume", *change)
    assert ran(run(*again)) == {*ORDER[5:]} - {"tabulate_scores"}  # the same scores, the same table
    assert ran(run(*again)) == set()
    labels = study / "data/07_model_output/test/test-000_labels.ome.tif"
    labels.write_bytes(labels.with_name("test-001_labels.ome.tif").read_bytes())
    assert "score_test: runs, predicted has changed" in run(*again).stdout


def test_steps_of_the_owner_run_when_anything_they_need_has_changed(study):
    (registry,) = (study / "src").glob("*/pipeline_registry.py")
    registry.write_text(
        "from kedro.pipeline import Pipeline, node\n"
        "from cellseg_nb.run.workflow import pipelines\n"
        "def count(raw, parameters):\n"
        "    return lambda path: path.write_text(str(parameters['pictures']['worst']))\n"
        "def register_pipelines():\n"
        "    step = node(count, ['raw', 'parameters'], 'counted', name='count')\n"
        "    return pipelines() | {'mine': Pipeline([step])}\n"
    )
    place = {"type": "cellseg_nb.run.workflow.Place", "filepath": "data/02_intermediate/n.txt"}
    (study / "conf/local/catalog.yml").write_text(yaml.safe_dump({"counted": place}))
    mine = ("pipeline", "run", "mine", "--project", study, "--resume")
    assert ran(run(*mine)) == {"count"} and ran(run(*mine)) == set()
    assert "pictures.worst was 1 and is 0" in run(*mine, "--params", "pictures.worst=0").stdout
    assert ran(run(*mine)) == {"count"}
    registry.write_text(registry.read_text() + "# another line\n")
    assert "count: runs, the code has changed" in run(*mine).stdout


def test_scores_of_an_earlier_model_are_not_those_of_the_run(study):
    card = study / "data/08_reporting/run_card.json"
    with (study / "data/06_models/trained/model/model.json").open("a") as file:
        file.write(" ")
    result = run("pipeline", "run", "data_augmentations", "--project", study, "--resume")
    assert "scores are of an earlier model or other settings: trained has changed" in result.stdout
    assert "AP@.5" not in result.stdout and json.loads(card.read_text())["metrics"] is None
    assert "scores are of an earlier model" in error_of("verify", study)
    result = run("pipeline", "run", "model_evaluation", "--project", study, "--resume")
    assert "AP@.5" in result.stdout and "earlier model" not in result.stdout


@pytest.mark.parametrize(
    "method, length, checkpoint",
    [("unet", "crops_per_epoch=64", "pt"), ("stardist", "steps_per_epoch=100", "npz")],
)
def test_killed_training_goes_on_from_its_checkpoint(study, method, length, checkpoint):
    own = f"training.{method}"
    settings = (f"model.method={method}", f"{own}.epochs=3", f"{own}.{length}")
    change = [word for one in settings for word in ("--params", one)]
    command = [*START, "pipeline", "run", "model_training", "--project", study, *change, "--resume"]
    unfinished = study / "data/06_models/.partial-trained"
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    waited = time.monotonic() + 300
    while not (unfinished / f"checkpoint.{checkpoint}").exists():
        assert running.poll() is None, running.stderr.read().decode()
        assert time.monotonic() < waited
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    running.stderr.close()
    assert len(pd.read_csv(study / "data/06_models/trained/log.csv")) == 1  # the model of before
    before = (unfinished / "log.csv").read_text().splitlines()
    assert len(before) < 4, "it was killed too late"
    result = run(*command[len(START) :])
    assert ran(result) == {"train_model"}
    after = (study / "data/06_models/trained/log.csv").read_text().splitlines()
    assert len(after) == 4 and after[1] == before[1]  # its seconds say that epoch 0 was not repeated
    assert not unfinished.exists()


class BreaksOffOnce(SimpleHTTPRequestHandler):
    """Serves one file; the first answer ends in the middle of it."""

    asked: list = []

    def do_GET(self):
        data = Path(self.directory, "dataset.zip").read_bytes()
        self.asked.append(part := self.headers.get("Range"))
        rest = data[int(part[len("bytes=") : -1]) :] if part else data
        self.send_response(206 if part else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest if part else rest[: len(rest) // 2])

    def log_message(self, *_):
        pass


def test_stars_on_an_archive_that_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.delenv("CELLSEG_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    archive = simulate_sbsst265(tmp_path / "dataset.zip", 4, 2, edge_px=96)
    handler = partial(BreaksOffOnce, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/dataset.zip"
    source = {"dataset": "sbsst265", "address": address, "sha256": file_sha256(archive)}
    own = {
        "data": {"sources": [source]},
        "processing": {"group_by": "kind", "rescale_to_magnification": 20},
        "model": TINY["model"] | {"method": "stardist"},
    }
    run("init", tmp_path / "study")
    text = yaml.safe_dump(TINY | own)
    (tmp_path / "study/conf/local/parameters.yml").write_text(text)
    result = run("pipeline", "run", "--project", tmp_path / "study")
    server.shutdown()
    server.server_close()
    half = archive.stat().st_size // 2
    assert BreaksOffOnce.asked == [None, f"bytes={half}-"]
    assert ran(result) == set(ORDER) and "WARNING" not in result.output
    reports = tmp_path / "study/data/08_reporting"
    table = pd.read_csv(reports / "metrics.csv")
    assert table["group"].tolist() == ["GNB-I", "NB-II", "all"]
    assert table["truth"].min() > 0
    names = {path.name.split("_")[0] for path in (reports / "pictures").iterdir()}
    assert names == {"worst", "best", "overlay", "stars", "scores.png"}
    card = json.loads((reports / "run_card.json").read_text())
    assert card["computer"]["device"] in ("cpu", "cuda") and "tensorflow" in card["versions"]
    assert card["settings"]["model"]["method"] == "stardist"


def test_kedro_runs_the_project_and_sends_nothing(study, tmp_path):
    calls = tmp_path / "calls.txt"
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(*arguments, **more):\n"
        f"    open({str(calls)!r}, 'a').write(str(arguments) + '\\n')\n"
        "    raise OSError('no network')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
    )
    names = ("DO_NOT_TRACK", "KEDRO_DISABLE_TELEMETRY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    paths = [str(tmp_path), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    environment["HOME"] = str(tmp_path)
    card = study / "data/08_reporting/run_card.json"
    card.unlink()
    done = subprocess.run(
        [*KEDRO, "run", "--pipelines", "model_evaluation"],
        cwd=study,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads(card.read_text())["steps"]
    assert list(steps) == ["segment_test", "score_test", "tabulate_scores"]
    assert not calls.exists(), calls.read_text()
    assert "usage data" not in done.stdout + done.stderr
    assert "telemetry" not in (study / "pyproject.toml").read_text()


def test_verify_repeats_the_scores_and_names_what_changed(study):
    assert "agree within 0.002 (largest difference 0)" in run("verify", study).stdout
    mask = study / "data/03_primary/test/masks/test-000.tif"
    mask.write_bytes(mask.read_bytes() + b" ")
    shown = run("verify", study, code=1).stdout
    assert "data/03_primary/test/masks/test-000.tif: changed" in shown
    mask.write_bytes((mask.parent / "test-001.tif").read_bytes())  # another image's truth
    shown = run("verify", study / "data/08_reporting/run_card.json", code=1).stdout
    assert "pixel_iou" in shown and "1 files differ" in shown


def test_list_and_show(study):
    shown = run("pipeline", "list", "--project", study).stdout
    assert "model_evaluation\n    segment_test         model model_validation scores\n" in shown
    run("pipeline", "show", "--project", study)
    page = (study / "data/08_reporting/pipeline.html").read_text()
    assert page.count('class="step"') == len(ORDER) and "data/03_primary" in page
    run("pipeline", "show", "data_download", "--project", study, "--out", study / "one.html")
    assert (study / "one.html").read_text().count('class="step"') == 1
    run("pipeline", "show", "data_download", "--project", study, "--out", study / "one.svg")
    drawing = ElementTree.parse(study / "one.svg").getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    line = error_of("pipeline", "show", "--project", study, "--out", study / "one.png")
    assert "a drawing is written as .html or .svg" in line


def test_errors_are_one_line_each(study, tmp_path):
    at = ("--project", study)
    assert "there is no pipeline 'all'; there are __default__, data_" in error_of("pipeline", "run", "all", *at)
    assert "has the tag 'scor'; there are augmentation, data" in error_of("pipeline", "run", "--tags", "scor", *at)
    assert "has no step 'train'; it has" in error_of("pipeline", "run", "--from", "train", *at)
    assert "is no project" in error_of("pipeline", "run", "--project", tmp_path)
    assert "is not empty" in error_of("init", study)
    assert "no run card" in error_of("verify", tmp_path)
    assert "training.epoch: unknown key" in error_of("pipeline", "run", "--params", "training.unet.epoch=3", *at)
    (study / "conf/base/parameters_pictures.yml").write_text("pictures: {wurst: 2}")
    line = error_of("pipeline", "run", *at)
    assert "conf/base/parameters_pictures.yml" in line and "pictures.wurst: unknown key" in line


@pytest.mark.parametrize("change", ["training.fine_tune=false", "training.unet.epochs=0"])
def test_a_model_is_used_as_it_is(study, change):
    at = ("--project", study, "--resume", "--params", change)
    assert "model.start_from names the model that is used as it is" in error_of("pipeline", "run", *at)
    result = run("pipeline", "run", *at, "--params", "model.start_from=nuclei")
    assert ran(result) == set(ORDER) - {"download_data", "process_data", "set_augmentations"}
    about = json.loads((study / "data/06_models/trained/model/model.json").read_text())
    assert about["name"] == "nuclei"
    scores = pd.read_csv(study / "data/08_reporting/metrics.csv").set_index("group")
    assert scores.loc["all", "f1_50"] > 0.9  # one epoch of training gives nothing like it
    assert "numbers agree" in run("verify", study).stdout
    line = error_of("pipeline", "run", *at, "--params", "model.start_from=no-such-model")
    assert "no model 'no-such-model'" in line


def test_a_worse_model_is_kept_by_force(study, tmp_path, monkeypatch):
    parent = shutil.copytree(study / "data/06_models/trained/model", tmp_path / "parent")
    at = ("pipeline", "run", "model_training", "--project", study, "--params", f"model.start_from={parent}")
    monkeypatch.setattr("cellseg_nb.train.finish.refusal", lambda *_, **__: "the new model is worse")
    line = error_of(*at)
    assert line.startswith("error: the new model is worse") and "--resume --force" in line
    before = file_sha256(study / "data/06_models/.partial-trained/model_refused/weights.safetensors")
    log = (study / "data/06_models/.partial-trained/log.csv").read_bytes()
    run(*at, "--resume", "--force")
    trained = study / "data/06_models/trained"
    assert file_sha256(trained / "model/weights.safetensors") == before
    assert (trained / "log.csv").read_bytes() == log  # not trained again


def test_missing_extra_is_named(monkeypatch, tmp_path):
    for name in [one for one in sys.modules if one.split(".")[0] == "kedro"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "cellseg_nb.run.workflow", raising=False)

    class Hidden:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "kedro":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])
    for line in (["init", tmp_path / "study"], ["pipeline", "list"]):
        assert "pip install 'cellseg_nb[pipelines]'" in error_of(*line)


def test_chosen_operations_scores_classes_and_curves(study):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = [
        "processing.train_operations=[fill_holes, {rescale: 0.5, interpolation: cubic}]",
        "processing.test_operations=[{min_area_px: 20}]",
        "processing.class_column=kind",
        "processing.test_classes=[fluorescence]",
        "augmentations.rotation={p: 0.3, degrees: 30}",
        "evaluation.metrics=[f1, iou]",
        "evaluation.thresholds=[0.5, 0.75]",
        "training.tensorboard=true",
    ]
    words = [word for one in changes for word in ("--params", one)]
    result = run("pipeline", "run", "--project", study, "--resume", *words)
    assert "IoU@.75" in result.stdout
    table = pd.read_csv(study / "data/08_reporting/metrics.csv")
    assert {"f1_50", "f1_75", "iou_50", "iou_75", "mean_ap"} <= set(table) and "ap_50" not in table
    masks = study / "data/03_primary"
    shapes = {part: read_labels(masks / part / f"masks/{part}-000.tif").shape for part in ("train", "test")}
    assert shapes == {"train": (128, 128), "test": (256, 256)}
    events = EventAccumulator(str(study / "data/06_models/trained/tensorboard")).Reload()
    assert {"loss/train_loss", "score/valid_ap50", "training/learning_rate"} <= set(events.Tags()["scalars"])
    assert len(events.Tags()["images"]) == 3
    wrong = ("--params", "processing.test_classes=[NB-I]")
    assert "there is no class 'NB-I'; there are fluorescence" in error_of(
        "pipeline", "run", "data_processing", "--project", study, *wrong
    )


def test_steps_are_chosen_by_the_tags_of_the_original(study):
    result = run("pipeline", "run", "--project", study, "--tag", "model_validation")
    assert ran(result) == {"segment_test", "score_test", "tabulate_scores"}


def test_kedro_viz_shows_the_project(study):
    from cellseg_nb.run.workflow import viz_command

    with pytest.raises(ValueError, match="takes ports up to 49151, not 49152"):
        viz_command(port=49152)
    assert all(int(viz_command()[-1]) <= 49151 for _ in range(200))
    taken = int(viz_command()[-1])
    with socket.create_server(("127.0.0.1", taken)), pytest.raises(ValueError, match=f"port {taken} is in use"):
        viz_command(port=taken)
    command = viz_command(browser=False)
    address = f"http://127.0.0.1:{command[command.index('--port') + 1]}/api/main"
    log = (study / "viz.log").open("w")
    running = subprocess.Popen(command, cwd=study, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while True:
            assert running.poll() is None and time.monotonic() < until
            try:
                with urlopen(address, timeout=5) as answer:
                    shown = json.load(answer)
                break
            except OSError:
                time.sleep(0.3)
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        running.wait()
        log.close()
    assert {one["name"] for one in shown["nodes"] if one["type"] == "task"} == set(ORDER)
    assert {"data_download", "model_training", "results_visualization"} <= {one["name"] for one in shown["tags"]}
