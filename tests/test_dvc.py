"""Projects under DVC: stages, a bucket, a clone, and what a change makes run."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_cli import error_of, run

BIN = Path(sys.executable).parent
MOTO = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])"
TINY = {
    "parameters_data": {"data": {"sources": [{"dataset": "simulated-nuclei", "split": "train", "images": 2}]}},
}
TINY["parameters_data"]["data"]["sources"].append({"dataset": "simulated-nuclei", "split": "test", "images": 1})


@pytest.fixture(scope="module")
def bucket():
    """A simulated S3 with a bucket; variables that lead to it."""
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-c", MOTO, str(port)], **quiet)
    try:
        until = time.monotonic() + 60
        while True:
            assert server.poll() is None and time.monotonic() < until
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        found = {"AWS_ACCESS_KEY_ID": "simulated", "AWS_SECRET_ACCESS_KEY": "simulated"}
        found |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
        keys = {"aws_access_key_id": "simulated", "aws_secret_access_key": "simulated"}
        client = boto3.client("s3", endpoint_url=found["AWS_ENDPOINT_URL"], region_name="us-east-1", **keys)
        client.create_bucket(Bucket="lab")
        yield found
    finally:
        server.terminate()
        server.wait()


def call(folder, variables, *command):
    """Run a program in a project; what it printed."""
    own = os.environ | variables | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    own |= {f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run([*command], cwd=folder, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def stages(text):
    """Stages that ran, from what DVC printed."""
    return {line.split("'")[1] for line in text.splitlines() if line.startswith("Running stage ")}


def test_a_project_is_repeated_stored_and_cloned(tmp_path, bucket):
    study = tmp_path / "study"
    shown = run("init", study, "--dvc", "--remote", "s3://lab/study").stdout
    assert "next: cd " in shown and "dvc repro" in shown
    for name, fields in TINY.items():
        (study / f"conf/base/{name}.yml").write_text(yaml.safe_dump(fields))
    first = call(study, bucket, "dvc", "repro", "process_data")
    assert stages(first) == {"state", "download_data", "process_data"}
    assert "analytics = False" in (study / ".dvc/config").read_text()
    call(study, bucket, "git", "add", "-A")
    call(study, bucket, "git", "commit", "-qm", "data")
    assert "pushed" in call(study, bucket, "dvc", "push", "process_data", "download_data")
    clone = tmp_path / "clone"
    call(tmp_path, bucket, "git", "clone", "-q", str(study), str(clone))
    assert not (clone / "data/03_primary").exists()
    call(clone, bucket, "dvc", "pull", "process_data", "download_data")
    assert (clone / "data/03_primary/train/masks/train-000.tif").is_file()
    result = run("pipeline", "run", "--project", clone, "--to", "process_data", "--resume")
    assert result.stdout.count("skipped, nothing has changed") == 2  # the notes came along
    file = clone / "conf/base/parameters_processing.yml"
    file.write_text(file.read_text().replace("group_by: dataset", "group_by: kind"))
    again = call(clone, bucket, "dvc", "repro", "process_data")
    assert stages(again) == {"state", "process_data"}


def test_errors_are_one_line_each(tmp_path, monkeypatch):
    assert "add --dvc" in error_of("init", tmp_path / "a", "--remote", "s3://lab/a")
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *_: None if name == "git" else which(name))
    assert "git is not installed" in error_of("init", tmp_path / "a", "--dvc")
    assert not (tmp_path / "a").exists()
