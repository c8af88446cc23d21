"""Networks computed by other libraries: the same objects, said why not, nothing sent, nothing left behind."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cellseg_nb.data.catalog import samples
from cellseg_nb.data.io import write_image
from cellseg_nb.data.simulate import simulate_nuclei
from cellseg_nb.models import engines
from cellseg_nb.models.bundle import load_bundle
from cellseg_nb.models.engines import ComputeSettings
from cellseg_nb.run.registry import find_task
from cellseg_nb.run.runner import run
from cellseg_nb.segment import engines as choosing
from cellseg_nb.segment.engines import choose_engine, with_engine
from cellseg_nb.segment.image import SegmentSettings, model_facts, segment_image
from cellseg_nb.segment.predict import predict, predict_tiles
from cellseg_nb.train.quantise import quantise

ROOT = Path(__file__).resolve().parent.parent
HEARD = """
import os, signal, threading
from cellseg_nb.models.bundle import load_bundle
from cellseg_nb.models.engines import compiled, openvino_graph

made = [compiled(openvino_graph(load_bundle("nuclei").network, 1))]
last = threading.Thread(target=made.clear)
last.start()
last.join()
signal.signal(signal.SIGUSR1, lambda *_: print("heard"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.fixture(scope="module")
def bundle():
    return load_bundle("nuclei")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory, bundle):
    """A quantised copy, calibrated on three simulated pictures."""
    out = tmp_path_factory.mktemp("models") / "nuclei-int8"
    quantise(bundle, samples("simulated-nuclei", "train")[:4], out)
    return out


@pytest.fixture(scope="module")
def picture():
    return simulate_nuclei((200, 260), n_nuclei=40, seed=11)[0]


@pytest.fixture
def without(monkeypatch):
    """Make packages look as if they were not installed."""

    def hide(*names):
        for name in names:
            for module in [one for one in sys.modules if one.split(".")[0] == name]:
                monkeypatch.delitem(sys.modules, module)
            monkeypatch.setitem(sys.modules, name, None)
        known = engines.find_spec
        monkeypatch.setattr(engines, "find_spec", lambda one: None if one in names else known(one))
        choosing._CHOICES.clear()

    yield hide
    choosing._CHOICES.clear()


def test_signals_are_heard_when_a_thread_lets_a_network_go():
    done = subprocess.run([sys.executable, "-c", HEARD], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr[-1000:]


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_an_engine_finds_the_same_objects(engine, bundle, picture):
    expected = segment_image(picture, bundle, SegmentSettings(engine="torch"))
    found = segment_image(picture, bundle, SegmentSettings(engine=engine))
    assert np.abs(found.probabilities - expected.probabilities).max() < 0.01
    assert expected.labels.max() > 20
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.familiarity.unusual == expected.familiarity.unusual
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=0.01)


def test_eight_bits_find_nearly_the_same(quantised, bundle, picture):
    exact = segment_image(picture, bundle, SegmentSettings(engine="torch"))
    fast = segment_image(picture, quantised)  # auto: it is quantised
    assert abs(int(fast.labels.max()) - int(exact.labels.max())) <= 3
    assert np.abs(fast.probabilities - exact.probabilities).mean() < 0.02
    assert fast.familiarity.unusual == exact.familiarity.unusual
    whole = segment_image(picture, quantised, SegmentSettings(engine="torch"))
    np.testing.assert_array_equal(whole.labels, exact.labels)


@pytest.mark.parametrize("shape", [(33, 40), (96, 31), (150, 290), (64, 64)])
def test_sizes_that_no_example_had(shape, bundle):
    image = simulate_nuclei(shape, n_nuclei=6, seed=2)[0]
    fast = with_engine(bundle, "openvino")
    np.testing.assert_allclose(predict(image, fast), predict(image, with_engine(bundle, "torch")), atol=0.01)


def test_orientations_tiles_and_models_of_colours():
    bundle = load_bundle("glomeruli")
    image = np.random.default_rng(0).random((3, 128, 96)).astype(np.float32)
    how = {"tile_px": 64, "overlap_px": 32, "flips": True}
    expected = predict_tiles(image, bundle.network, **how)
    np.testing.assert_allclose(
        predict_tiles(image, with_engine(bundle, "openvino").network, **how), expected, atol=0.01
    )


def test_stacks_stay_with_torch_unless_an_engine_is_named():
    bundle = load_bundle("membranes3d")
    chosen, asked = choose_engine(bundle), choose_engine(bundle, "openvino")
    assert asked.engine == "openvino" and asked.difference < 0.05
    assert chosen.engine == "torch" and "stacks" in chosen.because
    if chosen.engine == "openvino":
        assert chosen.difference <= 0.02


def test_threads_follow_those_of_torch(bundle):
    before, fast = torch.get_num_threads(), {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            fast[threads] = choose_engine(bundle, "openvino")
    finally:
        torch.set_num_threads(before)
    assert fast[1] is not fast[2]
    batch = np.random.default_rng(0).random((1, 1, 64, 96), np.float32)
    np.testing.assert_allclose(fast[1].compute(batch), fast[2].compute(batch), atol=0.05)


def test_many_calls_leave_neither_memory_nor_processes(bundle):
    fast = with_engine(bundle, "openvino").network.compute
    shapes = [(1, 1, 64 + 32 * n, 256 - 32 * n) for n in range(6)]

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    if not Path("/proc/self/statm").exists():
        pytest.skip("memory is read from /proc, which this system lacks")
    used, threads = [], []
    for _ in range(12):
        for shape in shapes:
            fast(np.zeros(shape, np.float32))
        used.append(resident())
        threads.append(len(os.listdir("/proc/self/task")))
    assert used[-1] - used[3] < 40
    assert threads[-1] == threads[0]


def test_a_missing_package_is_said_in_one_line(bundle, picture, tmp_path, without):
    write_image(tmp_path / "one.tif", picture, "YX")
    without("openvino", "onnxruntime")
    with pytest.raises(ImportError, match=r"pip install 'cellseg_nb\[fast\]'"):
        with_engine(bundle, "openvino")
    with pytest.raises(ImportError, match=r"onnxruntime is needed .* pip install 'cellseg_nb\[fast\]'"):
        with_engine(bundle, "onnx")
    with pytest.warns(UserWarning, match="OpenVINO is not installed: pip install") as said:
        run(find_task("segment")(SegmentSettings(engine="auto")), [tmp_path / "one.tif"], tmp_path / "out")
    assert sum("OpenVINO" in str(one.message) for one in said) == 1
    (facts,) = json.loads((tmp_path / "out" / "run.json").read_text())["engines"]
    assert facts["engine"] == "torch" and facts["because"] == "OpenVINO is not installed"


def test_without_openvino_onnx_runtime_computes(bundle, without):
    without("openvino")
    assert choose_engine(bundle).engine == "onnx"


def test_a_quantised_model_without_openvino_is_computed_in_full(quantised, without):
    without("openvino")
    chosen = choose_engine(load_bundle(quantised))
    assert chosen.engine == "torch" and "full precision" in chosen.advice


def test_a_graphics_card_is_left_to_torch(bundle, monkeypatch):
    monkeypatch.setattr(choosing, "choose_device", lambda device: torch.device("cuda"))
    monkeypatch.setattr(choosing, "choose_precision", lambda *_: "float32")
    assert choose_engine(bundle).because == "a graphics card computes"
    with pytest.raises(ValueError, match="computes on the CPU, and the device is 'cuda'; leave one of them out"):
        choose_engine(bundle, "openvino", "cuda")


def test_an_engine_that_gives_other_numbers_is_refused(bundle, monkeypatch):
    other = replace(bundle, network=torch.nn.Conv2d(1, 3, 1))  # nothing is kept of it
    monkeypatch.setattr(choosing, "compiled", lambda *_: lambda batch: np.full((1, 3, *batch.shape[2:]), 9, np.float32))
    with pytest.raises(ValueError, match="gives other numbers for the model 'nuclei'"):
        choose_engine(other, "openvino")
    monkeypatch.setattr(choosing, "is_installed", lambda engine: engine == "openvino")
    chosen = choose_engine(other)
    assert chosen.engine == "torch" and "gives other numbers" in chosen.because


def test_a_star_model_is_tensorflows():
    class Star:
        """Stands for a network of TensorFlow."""

    bundle = replace(load_bundle("nuclei"), network=Star())
    assert choose_engine(bundle).engine == "tensorflow"
    with pytest.raises(ValueError, match="is a StarDist model, which TensorFlow computes; leave engine 'onnx' out"):
        choose_engine(bundle, "onnx")


@pytest.mark.parametrize("task", ["segment", "segment3d", "count", "slide", "marks"])
def test_every_task_with_a_network_has_the_setting(task):
    assert issubclass(find_task(task).Settings, ComputeSettings)


def test_a_run_says_by_what_it_was_computed(picture, quantised, tmp_path):
    write_image(tmp_path / "one.tif", picture, "YX")
    write_image(tmp_path / "two.tif", picture[::-1], "YX")
    run(find_task("segment")(model=quantised), [tmp_path], tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "run.json").read_text())
    (engine,) = facts["engines"]
    assert engine["engine"] == "openvino-int8" and engine["precision"] == "int8"
    assert 0 < engine["largest_difference"] < 1
    record = json.loads((tmp_path / "out" / ".resume" / "segment" / "one.json").read_text())
    assert record["engines"] == facts["engines"]
    assert {"int8.xml", "int8.bin"} <= set(facts["model"]["files"])


def test_another_engine_is_another_fingerprint(quantised):
    task = find_task("segment")
    marks = {task(SegmentSettings(engine=one)).fingerprint() for one in ("torch", "openvino")}
    assert len(marks) == 2
    assert model_facts(quantised)["files"].keys() > model_facts("nuclei")["files"].keys()


def test_the_command_refuses_in_one_line(tmp_path, monkeypatch, capsys):
    from cellseg_nb.run.cli import main

    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "one.tif", np.zeros((40, 40), np.uint8), "YX")

    def said(*words):
        monkeypatch.setattr(sys, "argv", ["cellseg", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        assert ended.value.code == 2, told
        return told.err.strip()

    text = said("segment", "one.tif", "--engine", "fast")
    assert "engine" in text and "openvino-int8" in text
    text = said("segment", "one.tif", "--engine", "openvino-int8")
    assert "is not quantised" in text and len(text.splitlines()) == 1


def test_a_damaged_quantised_model_is_refused(quantised, tmp_path):
    copy = shutil.copytree(quantised, tmp_path / "copy")
    (copy / "int8.xml").write_text("<net/>")
    with pytest.raises(ValueError, match="is damaged, or of another model; quantise the model again"):
        segment_image(np.zeros((64, 64), np.uint8), copy)


def test_quantising_says_what_it_cost(quantised):
    facts = load_bundle(quantised).specification.scores["int8"]
    assert facts["cost in mean AP"] == pytest.approx(facts["mean AP in full precision"] - facts["mean AP"], abs=1e-3)
    assert facts["calibrated on"] == "3 training pictures" and facts["largest difference of a probability"] > 0
    assert facts["mean difference of a probability"] < 0.004  # the first layers are left as they are
    assert sum(one.stat().st_size for one in quantised.iterdir()) < 20_000_000


def test_nothing_is_sent(tmp_path):
    """Importing, converting and quantising load nothing that reports, and open no connection."""
    code = """
import socket, sys

def refuse(*_):
    raise AssertionError("a connection")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import threading
from cellseg_nb.models.bundle import load_bundle
from cellseg_nb.models.engines import quiet_library
from cellseg_nb.segment.engines import choose_engine
assert choose_engine(load_bundle("nuclei"), "openvino").engine == "openvino"
quiet_library("nncf", "int8")
assert not [one for one in sys.modules if one.startswith("openvino_telemetry")], "it reports"
assert [one.name for one in threading.enumerate()] == ["MainThread"]
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"HOME": str(tmp_path)}
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("intel*"))
