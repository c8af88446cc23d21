"""Commands spread over processes, Slurm, Dask and another computer: killed workers, failing pictures, the same tables as on one computer."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
import yaml
from cluster_servers import (
    SlurmCluster,
    SshServer,
    held_in,
    start_slurm,
    start_ssh,
    state_of,
    stop,
    wait_for,
    why_no_slurm,
    why_no_ssh,
)
from typer.testing import CliRunner

from cellseg_nb.core import claim
from cellseg_nb.data.io import write_image
from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.data.simulate_marks import write_simulated_marks
from cellseg_nb.data.simulate_slides import simulate_slide
from cellseg_nb.run.analyse import SegmentSettings, analyse
from cellseg_nb.run.cli import app
from cellseg_nb.run.cluster import begin_submission, drive, failures, merge, read_submission, work
from cellseg_nb.run.jobs import Merged
from cellseg_nb.run.marks import run_marks
from cellseg_nb.run.records import record_path
from cellseg_nb.segment.marks import MarkSettings
from cellseg_nb.train.experiments import cross_validate
from cellseg_nb.train.settings import read_config
from cellseg_nb.train.sweeps import read_sweeps, run_sweep

START = [sys.executable, "-c", "from cellseg_nb.run.cli import main; main()", "submit"]
TABLES = ("counts.csv", "objects.csv")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Three pictures, and a file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        write_image(folder / f"i{seed}.tif", simulate_nuclei((96, 128), 8, seed=seed)[0], "YX")
    (folder / "bad.tif").write_bytes(b"cut off")
    return folder


@pytest.fixture(scope="module")
def alone(pictures, tmp_path_factory) -> Path:
    """Results of one process."""
    out = tmp_path_factory.mktemp("alone")
    analyse(pictures, out, "otsu", SegmentSettings())
    return out


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    """Whatever a test started has ended with it."""
    before = children()
    yield
    wait_for(lambda: not children() - before, 15, "the end of all processes that were started")


def children() -> set[int]:
    """Processes that come from this one, also those whose parents have ended, told by a variable that they inherit."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                told = f"CELLSEG_TEST_OF={os.getpid()}".encode() in (folder / "environ").read_bytes()
                told &= (
                    b"resource_tracker" not in (folder / "cmdline").read_bytes()
                )  # of Python, for as long as this process lives
                if told and (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.add(int(folder.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return found


@pytest.fixture(autouse=True, scope="module")
def told_apart():
    os.environ["CELLSEG_TEST_OF"] = str(os.getpid())
    yield
    del os.environ["CELLSEG_TEST_OF"]


def command(pictures: Path, out: Path) -> list[str]:
    return ["--", "segment", str(pictures), "--out", str(out), "--model", "otsu"]


def submit(*words, **variables) -> subprocess.Popen:
    return subprocess.Popen(
        [*START, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
    )


def ended(process: subprocess.Popen, seconds: float = 90) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"it did not end: {process.communicate()}") from None
    return process.returncode, out, err


def check_tables(out: Path, alone: Path) -> None:
    for table in TABLES:
        assert (out / table).read_bytes() == (alone / table).read_bytes()
    assert (out / "report.html").exists()


def check_ended(process: subprocess.Popen, pictures: Path) -> None:
    """All was done but the file that is no picture, which is named."""
    code, out, err = ended(process)
    assert code == 1, err
    assert "in 3 images" in out
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and errors[0].startswith(f"error: {pictures}/bad.tif: ") and "TIFF" in errors[0]


# Processes on this computer


@pytest.mark.parametrize("engine", ["local", "dask"])
def test_goes_on_past_a_killed_worker(engine, pictures, alone, tmp_path):
    with held_in(tmp_path / "out", "i1") as at_work:
        process = submit(engine, "--workers", 2, *command(pictures, tmp_path / "out"))
        os.kill(at_work()["pid"], signal.SIGKILL)
    check_ended(process, pictures)
    check_tables(tmp_path / "out", alone)
    submission = read_submission(tmp_path / "out")
    assert (engine == "dask" or submission.state(2)["lost"] == 1) and "attempt 2" in submission.log(2).read_text()
    assert failures(submission) == {
        "bad": json.loads((submission.folder / "merged.json").read_text())["failures"][f"{pictures}/bad.tif"]
    }


def test_ctrl_c_ends_workers_and_the_same_command_goes_on(pictures, alone, tmp_path):
    with held_in(tmp_path / "out", "i1") as at_work:
        process = submit("local", *command(pictures, tmp_path / "out"))
        worker = at_work()["pid"]
        process.send_signal(signal.SIGINT)
        code, _, err = ended(process)
        assert code == 130 and "the same command goes on" in err
        assert not Path(f"/proc/{worker}").exists()
    assert (tmp_path / "out/i0_labels.tif").exists() and not (tmp_path / "out/i1_labels.tif").exists()
    stamp = (tmp_path / "out/i0_labels.tif").stat().st_mtime_ns
    check_ended(submit("local", *command(pictures, tmp_path / "out")), pictures)
    check_tables(tmp_path / "out", alone)
    assert (tmp_path / "out/i0_labels.tif").stat().st_mtime_ns == stamp


def test_a_run_is_refused_while_shares_are_at_work(pictures, tmp_path):
    with claim(record_path(tmp_path, "i1", ".lock", "segment"), tmp_path):
        with pytest.raises(ValueError, match="in use by another run"):
            analyse(pictures, tmp_path, "otsu", SegmentSettings())
    assert len(analyse(pictures, tmp_path, "otsu", SegmentSettings()).counts) == 3


# Slurm


@pytest.fixture(scope="module")
def slurm(tmp_path_factory, told_apart) -> SlurmCluster:
    if why := why_no_slurm():
        pytest.skip(why)
    cluster = start_slurm(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.stop()


def test_slurm_goes_on_past_a_killed_worker_and_a_requeued_job(slurm, pictures, alone, tmp_path):
    out = tmp_path / "out"
    with held_in(out, "i0") as first, held_in(out, "i2") as last:
        words = ("--poll", 0.3, "--items-per-job", 2, "--workers", 2, "--time", "0:10:00")
        process = submit("slurm", *words, *command(pictures, out), **slurm.variables)
        first(), last()
        jobs = json.loads((read_submission(out).folder / "jobs.json").read_text())
        (requeued,) = [job for job, numbers in jobs.items() if 3 in numbers]
        os.kill(first()["pid"], signal.SIGKILL)
        slurm.ask("scontrol", "requeue", requeued)
        wait_for(
            lambda: "RUNNING" not in slurm.ask("squeue", "--noheader", "--array", f"--jobs={requeued}", "--format=%T"),
            30,
            "the end of the job",
        )
    check_ended(process, pictures)
    check_tables(out, alone)
    assert read_submission(out).state(1)["lost"] == 1  # that of the killed worker
    assert read_submission(out).state(3).get("lost", 0) == 0  # Slurm itself began this one again
    assert not slurm.ask("squeue", "--noheader").strip()


def test_slurm_without_waiting(slurm, pictures, alone, tmp_path):
    out = tmp_path / "out"
    words = ("slurm", "--no-wait", "--items-per-job", 4, "--poll", 0.3)
    code, said, err = ended(submit(*words, *command(pictures, out), **slurm.variables))
    assert (code, said.split()[0]) == (0, "look:"), err
    code, _, err = ended(submit("merge", out, **slurm.variables))
    assert code == 2 and "did not end yet" in err
    wait_for(lambda: state_of(out, "i2")["state"] == "done", 60, "the last picture")
    code, said, _ = ended(submit("status", out, **slurm.variables))
    assert code == 0 and "4 images: 3 done, 1 failed" in said and "failed: bad: " in said
    check_ended(submit("merge", out, **slurm.variables), pictures)
    check_tables(out, alone)
    (tmp_path / "empty.conf").touch()
    code, _, err = ended(submit("slurm", *command(pictures, out), SLURM_CONF=str(tmp_path / "empty.conf")))
    assert code == 2 and "error: Slurm does not answer here: " in err and "or with 'local'" in err


def test_slurm_that_is_not_there(pictures, tmp_path):
    code, _, err = ended(submit("slurm", *command(pictures, tmp_path / "out"), PATH=str(tmp_path)))
    assert code == 2 and err.splitlines()[-1].startswith("error: there is no sbatch here")


# Dask


def test_dask_scheduler_that_is_there(pictures, alone, tmp_path):
    distributed = pytest.importorskip("distributed", reason="Dask is an extra")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None, silence_logs=50
    ) as cluster:
        from cellseg_nb.run.schedulers import Dask

        submission = begin_submission(command(pictures, tmp_path / "out")[1:])
        drive(submission, Dask(address=cluster.scheduler_address))
        assert merge(submission).n_done == 3
        wait_for(lambda: len(cluster.scheduler_info["workers"]) == 1, what="its worker, which stays")
    check_tables(tmp_path / "out", alone)
    with pytest.raises(ValueError, match="no scheduler of Dask answers at tcp://127.0.0.1:1"):
        Dask(address="tcp://127.0.0.1:1", timeout_s=2).run(submission, [0], lambda: None)


# Another computer


@pytest.fixture(scope="module")
def lab(tmp_path_factory, told_apart) -> SshServer:
    if why := why_no_ssh():
        pytest.skip(why)
    server = start_ssh(tmp_path_factory.mktemp("ssh"))
    yield server
    stop(server.processes)


def remotely(lab, out, pictures, *words, host="lab", python=sys.executable) -> subprocess.Popen:
    start = ("--remote", host, "--remote-python", python, "--ssh", lab.ssh, *words, "local")
    return submit(*start, "--", "segment", pictures, "--out", out, "--model", "otsu")


@pytest.fixture
def odd_pictures(pictures, tmp_path) -> Path:
    """Files whose names a shell would take for commands."""
    folder = tmp_path / "a b;touch $HOME/pwned"
    shutil.copytree(pictures, folder)
    (folder / "i2.tif").rename(folder / "i2;rm -rf $HOME 'x'.tif")
    return folder


def test_remote_goes_on_after_a_broken_line(lab, odd_pictures, alone, tmp_path):
    out = tmp_path / "out here"
    process = remotely(lab, out, odd_pictures)
    wait_for(lambda: lab.break_lines("follow"), 60, "that the submission there is followed")
    code, said, err = ended(process)
    assert code == 1 and "in 3 images" in said, err
    assert "the connection is broken; trying again" in err and "bad.tif: " in said
    counts, expected = (one.read_text().splitlines() for one in (out / "counts.csv", alone / "counts.csv"))
    assert [line.rpartition(",")[0] for line in counts[1:3]] == [line.rpartition(",")[0] for line in expected[1:3]]
    assert (out / "i2;rm -rf $HOME 'x'_labels.tif").read_bytes() == (alone / "i2_labels.tif").read_bytes()
    assert lab.home.exists() and not (lab.home / "pwned").exists()
    edited = (out / "i0_labels.tif").read_bytes() + b"\0"
    (out / "i0_labels.tif").write_bytes(edited)
    (out / "i1_overlay.png").unlink()
    code, said, err = ended(remotely(lab, out, odd_pictures))  # nothing is copied twice, what was changed here stays
    assert code == 1 and "are copied there" not in err and "1 file changed here stay" in err, err
    assert (out / "i0_labels.tif").read_bytes() == edited and (out / "i1_overlay.png").exists()


def test_remote_errors_are_one_line(lab, pictures, tmp_path):
    code, _, err = ended(remotely(lab, tmp_path / "out", pictures, host="stranger"))
    assert code == 2 and "error: no connection to stranger: " in err and "must work with a key" in err
    code, _, err = ended(remotely(lab, tmp_path / "out", pictures, host="nowhere.invalid"))
    assert code == 2 and err.count("\n") == 1 and "error: no connection to nowhere.invalid: " in err  # asked once
    code, _, err = ended(submit("--remote", "lab"))
    assert code == 2 and "error: --remote goes with local, slurm or dask" in err
    code, _, err = ended(remotely(lab, tmp_path / "out", pictures, python="/nowhere/python"))
    assert (
        code == 2
        and err.splitlines()[-1]
        == "error: lab: /nowhere/python is not there or has no cellseg_nb; name another one with --remote-python"
    )
    code, _, err = ended(remotely(lab, tmp_path / "out", tmp_path / "none"))
    assert code == 2 and f"there is no file {tmp_path / 'none'}" in err


# Other commands; in this process, for its speed


class Here:
    """Does pieces in this process; those of the list are lost once."""

    def __init__(self, lost=()):
        self.lost = list(lost)

    def run(self, submission, numbers, progress):
        for number in numbers:
            if number in self.lost:
                self.lost.remove(number)
            else:
                work(submission.folder, number)
        return {}

    def cancel(self, submission):
        pass


FIELDS = {
    "name": "tiny",
    "data": {"dataset": "simulated-nuclei", "images": 6, "validation_fraction": 0.34},
    "training": {"epochs": 1, "crops_per_epoch": 4, "batch_size": 4, "crop_px": 64, "device": "cpu"},
}


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "tiny.yml"
    path.write_text(yaml.safe_dump(FIELDS), encoding="utf-8")
    return path


def done_here(words: list, lost=()) -> Merged:
    submission = begin_submission([str(one) for one in words])
    drive(submission, Here(lost))
    return merge(submission)


def test_folds_give_the_table_of_one_process(config, tmp_path):
    words = ["train", config, "--folds", 2]
    found = done_here([*words, "--out", tmp_path / "out"], lost=[1])
    assert found.n_done == 2 and "pooled" in found.text and not found.failures
    with redirect_stdout(StringIO()):
        cross_validate(read_config(str(config)), 2, tmp_path / "alone")
    assert (tmp_path / "out/cross_validation.csv").read_bytes() == (
        tmp_path / "alone/cross_validation.csv"
    ).read_bytes()


def test_a_configuration_that_changed_meanwhile_changes_nothing(config, tmp_path):
    submission = begin_submission(["train", str(config), "--out", str(tmp_path / "out")])
    config.write_text(yaml.safe_dump(FIELDS | {"name": "other"}), encoding="utf-8")
    drive(submission, Here())
    assert merge(submission).text == f"model: {tmp_path / 'out/model'}"
    assert read_config(str(tmp_path / "out/config.yml")).name == "tiny"


def test_an_experiment_gives_the_scores_of_one_process(config, tmp_path):
    sweeps = {"learning": {"how": "grid", "values": {"training.learning_rate": [0.002]}}}
    file = tmp_path / "experiment.yml"
    file.write_text(
        yaml.safe_dump({"name": "tiny", "defaults": str(config), "folds": 2, "draft": {"seed": 1}, "sweeps": sweeps})
    )
    found = done_here(["experiment", file, "--out", tmp_path / "out"])
    assert found.text.endswith("learning-draft") and not found.failures
    with redirect_stdout(StringIO()):
        folder = run_sweep(read_sweeps(file), "learning", "draft", tmp_path / "alone", file)
    results = tmp_path / "out" / folder.relative_to(tmp_path / "alone") / "results.csv"
    ours, theirs = (pd.read_csv(path).drop(columns="seconds") for path in (results, folder / "results.csv"))
    pd.testing.assert_frame_equal(ours, theirs)


def test_marks_give_the_table_of_one_process(tmp_path):
    for name in ("shared", "alone"):
        write_simulated_marks(tmp_path / name, ("a", "b"), (420, 420), 9, 9, "DHB", seed=60, angle_deg=4.0)
    shutil.rmtree(tmp_path / "shared/source/b")
    shutil.copytree(tmp_path / "shared/source/a", tmp_path / "shared/source/b")
    (tmp_path / "shared/source/c").mkdir()  # a group without a picture
    words = ["marks", "run", tmp_path / "shared", "--rows", 9, "--cols", 9, "--tile-size", 256, "--overlap", 64]
    found = done_here(words, lost=[1])
    assert list(found.failures) == ["c"] and found.n_done == 2
    shutil.rmtree(tmp_path / "alone/source")
    shutil.copytree(tmp_path / "shared/source", tmp_path / "alone/source")
    settings = MarkSettings(rows=9, cols=9, tile_px=256, overlap_px=64)
    alone = run_marks(tmp_path / "alone", None, settings, workers=1)
    assert {name: reason.replace("alone", "shared") for name, reason in alone.failures.items()} == found.failures
    assert (tmp_path / "shared/marks_summary.csv").read_bytes() == (tmp_path / "alone/marks_summary.csv").read_bytes()


@pytest.mark.parametrize("verb", ["count", "slide"])
def test_counts_and_slides_give_the_tables_of_one_process(verb, tmp_path):
    if verb == "slide":
        simulate_slide(tmp_path / "in.tif", (320, 400), 2.0, seed=900)
    else:
        write_image(tmp_path / "in.tif", simulate_nuclei((128, 160), 8, seed=3)[0], "YX")
    options = ["--tile", 128, "--overlap", 32] if verb == "slide" else []
    done_here([verb, tmp_path / "in.tif", "--out", tmp_path / "out", *options], lost=[0])
    assert (
        CliRunner()
        .invoke(app, [str(one) for one in [verb, tmp_path / "in.tif", "--out", tmp_path / "alone", *options]])
        .exit_code
        == 0
    )
    for table in sorted((tmp_path / "alone").glob("*.csv")):
        ours, theirs = (
            pd.read_csv(path).drop(columns="seconds", errors="ignore")
            for path in (tmp_path / "out" / table.name, table)
        )
        pd.testing.assert_frame_equal(ours, theirs)


# Notebooks


def test_a_notebook_is_a_job(tmp_path):
    notebook = tmp_path / "sum.py"
    notebook.write_text('# %% tags=["parameters"]\nn = 1\n\n# %%\nprint(10 / n)\n')
    words = ["local", "--", "notebook", notebook, "--out", tmp_path / "results", "--experiment", "sums", "-p"]
    code, said, err = ended(submit(*words, "n", 4))
    assert code == 0, err
    (done,) = (tmp_path / "results/sum").glob("*-sums-run/sum.ipynb")
    assert said.endswith(f"notebook: {done}\n") and "2.5" in done.read_text()
    found = done_here([*words[2:], "n", "0"])
    place = done.parent.with_name(f"{done.parent.name}-2") / "sum.ipynb"
    assert found.failures == {
        "sum.py": f"cell 2 (print(10 / n)): ZeroDivisionError: division by zero; as far as it came: {place}"
    }
    assert "ZeroDivisionError" in place.read_text() and found.n_done == 0
    with pytest.raises(ValueError, match="has no parameter 'm'; it has n"):
        begin_submission([*map(str, words[2:]), "m", "0"])
