"""Jobs in the folders of SageMaker: what comes out, what a failure says, and what a kill leaves."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cellseg_nb.data.io import write_image, write_labels
from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.models.bundle import load_bundle
from cellseg_nb.run.cli import app
from cellseg_nb.run.sagemaker import metric_definitions
from cellseg_nb.train.settings import read_config

ROOT = Path(__file__).parents[1]
CONFIG = """
name: colonies
licence: CC0-1.0
network: {encoder: resnet18, encoder_depth: 3, decoder_channels: [16, 8, 8]}
targets: [foreground, boundary]
training: {epochs: 2, crops_per_epoch: 4, batch_size: 2, crop_px: 64, device: cpu}
"""


@pytest.fixture
def job(tmp_path):
    """A job with a configuration and four labelled pictures in its channels."""
    data = tmp_path / "input" / "data"
    for seed in range(4):
        image, labels = simulate_nuclei((72, 80), 8, seed=seed)
        write_image(data / "training" / "images" / f"{seed}.tif", image, "YX")
        write_labels(data / "training" / "masks" / f"{seed}.tif", labels)
    (data / "config").mkdir()
    (data / "config" / "colonies.yml").write_text(CONFIG)
    ask(tmp_path, **{"training.epochs": "2"})
    channel = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
    write(tmp_path, "inputdataconfig", training=channel, config=channel)
    write(tmp_path, "resourceconfig", current_host="algo-1", hosts=["algo-1"], network_interface_name="eth0")
    return tmp_path


def write(job, name, **content):
    path = job / "input" / "config" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def ask(job, **parameters):
    """SageMaker writes every value as a text, and its tools write texts as JSON."""
    write(job, "hyperparameters", sagemaker_job_name='"colonies-1"', **parameters)


def train(job, code=0):
    done = CliRunner().invoke(app, ["sagemaker", "train", "--root", str(job)])
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done


def test_a_job_leaves_a_model_and_what_describes_it(job):
    (job / "output").mkdir()
    (job / "output" / "failure").write_text("of the start before\n")
    printed = train(job).stdout
    bundle = load_bundle(job / "model")
    assert bundle.specification.name == "colonies" and not (job / "output" / "failure").exists()
    assert "input/data/training" in bundle.specification.training["config"]["data"]["dataset"]
    kept = {path.name for path in (job / "output" / "data").iterdir()}
    assert {"log.csv", "run.json", "training.html", "validation.csv"} <= kept
    assert not any(name.endswith(".pt") for name in kept)
    for metric in metric_definitions(read_config(job / "input/data/config/colonies.yml")):
        found = re.findall(metric["Regex"], printed)
        assert len(found) == 2 and all(0 <= float(one) < 100 for one in found), metric
    start = job / "input" / "data" / "model"  # a second job starts from this model
    (job / "model").rename(start)
    (job / "checkpoints").rename(job / "old")
    ask(job, force="true", **{"training.epochs": "1"})
    train(job)
    assert load_bundle(job / "model").specification.training["config"]["start_from"] == str(start)


@pytest.mark.parametrize(
    "parameters, says",
    [
        ({"training.epoch": "3"}, "training.epoch"),
        ({"training.epochs": "many"}, "training.epochs"),
        ({"training.epochs": "[3"}, "'[3' is not valid YAML"),
        ({"config": "nothing"}, "no configuration 'nothing'"),
        ({"data.dataset": "nowhere"}, "nowhere"),
        ({"training.crop_px": "60"}, "multiple of 8"),
    ],
    ids="key value yaml config data fit".split(),
)
def test_a_wrong_hyperparameter_is_a_failure_of_one_line(job, parameters, says):
    ask(job, **parameters)
    error = train(job, code=2).stderr
    failure = (job / "output" / "failure").read_text()
    assert says in failure and failure.count("\n") == 1 and len(failure) <= 1025
    assert failure.strip() in error and error.count("\n") == 1
    assert not (job / "model").exists()


def test_a_job_that_was_ended_goes_on_from_its_checkpoint(job):
    """As a machine of the spot market is taken away, in the middle of an epoch."""
    ask(job, **{"training.epochs": "4"})
    code = "from cellseg_nb.run.cli import main; main()"
    arguments = [sys.executable, "-c", code, "sagemaker", "train", "--root", str(job)]
    running = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    checkpoint, model = job / "checkpoints/run/checkpoint.pt", job / "checkpoints/run/model/model.json"
    try:
        for _ in range(1200):
            if checkpoint.is_file() and model.is_file() or running.poll() is not None:
                break
            time.sleep(0.1)
        assert running.poll() is None, "the training ended before it could be killed"
        running.send_signal(signal.SIGTERM)
        running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 143
    assert not (job / "output" / "failure").exists()
    assert load_bundle(job / "model").specification.name == "colonies"  # the best so far
    printed = train(job).stdout
    assert "epoch 3" in printed and "epoch 0" not in printed
    assert len((job / "output/data/log.csv").read_text().splitlines()) == 5
    assert load_bundle(job / "model").specification.scores["validation"]["AP@.5"] >= 0


def test_the_image_of_training_and_of_the_service_is_one():
    """SageMaker starts the image with the word train, ECS with cellseg serve."""
    text = (ROOT / "Dockerfile").read_text()
    stages = dict(re.findall(r"^FROM \S+ AS (\w+)\n(.*?)(?=^FROM|\Z)", text, re.M | re.S))
    task = json.loads((ROOT / "cellseg_nb/run/service/deploy/ecs-task.json").read_text())
    images = {one["image"].rpartition("/")[2] for one in task["containerDefinitions"]}
    assert images == {"cellseg_nb:train"}
    assert "docker build --target train -t cellseg_nb:train ." in text
    extras = re.search(r"'\.\[([\w,]+)\]'", stages["train"])[1].split(",")
    known = (ROOT / "settings.ini").read_text()
    assert {"service", "tensorflow"} <= set(extras) and all(f"\n{one}_requirements" in known for one in extras)
    script = re.search(r"printf '(.*)' > /usr/local/bin/train", stages["train"])[1].replace("\\n", "\n")
    shebang, line = script.splitlines()
    assert shebang == "#!/bin/sh" and line.startswith("exec ") and line.endswith(' "$@"')  # signals arrive
    words = line.removeprefix("exec ").removesuffix(' "$@"').split()
    assert words[0] == "cellseg"
    done = CliRunner().invoke(app, [*words[1:], "--help"])
    assert done.exit_code == 0 and "/opt/ml" in done.stdout
