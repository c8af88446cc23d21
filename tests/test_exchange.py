"""Models go to other programs and come from them: files are compared, wrong ones are refused in one line."""

import io
import os
import re
import subprocess
import sys
import zipfile
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

from cellseg_nb.data.simulate import simulate_germline, simulate_nuclei
from cellseg_nb.models.bundle import Bundle, load_bundle, read_specification
from cellseg_nb.models.exchange import TARGETS, export_model, import_model
from cellseg_nb.models.file_networks import open_torchscript
from cellseg_nb.models.onnx_files import open_onnx, run_onnx, trial_batch
from cellseg_nb.models.package_writer import maps_network, sample_picture
from cellseg_nb.segment.count import predict_density
from cellseg_nb.segment.image import segment_image
from cellseg_nb.segment.predict import predict
from cellseg_nb.segment.stack import segment_stack

BUNDLES = ("nuclei", "count-cells", "membranes3d", "glomeruli", "marks")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Packages that are opened here stay out of the user's cache."""
    monkeypatch.setattr("cellseg_nb.models.package_reader.cache_folder", lambda: tmp_path / "cache")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The model nuclei as a package."""
    path = tmp_path_factory.mktemp("package") / "nuclei.zip"
    export_model(load_bundle("nuclei"), "bioimageio", path)
    return path


def unpacked(package, folder):
    """A copy of a package that can be changed, and its page."""
    with zipfile.ZipFile(package) as archive:
        archive.extractall(folder)
    return folder, yaml.safe_load((folder / "bioimageio.yaml").read_text())


@pytest.fixture
def cellseg(monkeypatch, capsys):
    """Run a command; its exit code and what it wrote."""
    from cellseg_nb.run.cli import main

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["cellseg", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capsys.readouterr())

    return run


@pytest.mark.parametrize("name", BUNDLES)
def test_onnx_gives_the_maps_of_the_model_at_a_new_size(name, tmp_path):
    bundle = load_bundle(name)
    difference = export_model(bundle, "onnx", tmp_path / "a.onnx")
    assert difference <= 1e-4
    step, channels = bundle.specification.network.step_px, bundle.specification.network.in_channels
    deep = name == "membranes3d"
    seen = trial_batch((channels, *([2 * step] * deep), 3 * step, 5 * step), seed=7)
    with torch.inference_mode():
        expected = maps_network(bundle)(torch.from_numpy(seen)).numpy()
    assert np.abs(run_onnx(open_onnx(tmp_path / "a.onnx"), seen) - expected).max() <= 1e-4


@pytest.mark.parametrize("name", ("membranes3d", "glomeruli"))
def test_torchscript_gives_the_maps_of_the_model(name, tmp_path):
    assert export_model(load_bundle(name), "torchscript", tmp_path / "a.pt") <= 1e-4
    _, facts = open_torchscript((tmp_path / "a.pt").read_bytes())
    assert facts["name"] == name and facts["licence"] and len(facts["weights_sha256"]) == 64


@pytest.mark.parametrize("name, to", [("count-cells", "bioimageio"), ("glomeruli", "onnx"), ("marks", "torchscript")])
def test_models_that_count_or_paint_masks_come_back(name, to, tmp_path):
    bundle, path = load_bundle(name), tmp_path / f"a{TARGETS[to]}"
    export_model(bundle, to, path)
    found, about = load_bundle(import_model(path, tmp_path / "model")), bundle.specification
    picture = sample_picture(about)[:128, :96]
    paint = predict_density if name == "count-cells" else partial(predict, precision="float32")
    assert np.abs(paint(picture, found) - paint(picture, bundle)).max() <= 1e-4
    for told in (
        "normalisation",
        "licence",
        *(("peaks", "calibration", "known_pictures") if to == "bioimageio" else ("threshold",)),
    ):
        assert getattr(found.specification, told) == getattr(about, told)
    assert found.specification.network.in_channels == about.network.in_channels


def test_stardist_models_say_what_can_be_written(tmp_path):
    stars = Bundle(None, read_specification("stars"), tmp_path)
    for to in ("onnx", "torchscript", "bioimageio"):
        suffix = {"onnx": ".onnx", "torchscript": ".pt", "bioimageio": ".zip"}[to]
        with pytest.raises(ValueError, match="Models of PyTorch .such as nuclei"):
            export_model(stars, to, tmp_path / f"a{suffix}")
    assert not list(tmp_path.iterdir())


def test_the_library_of_the_format_accepts_a_package(package, tmp_path):
    major, minor = map(int, version("pydantic").split(".")[:2])
    core = tuple(map(int, version("bioimageio.spec").split(".")[:3]))
    if (major, minor) >= (2, 14) and core < (0, 5, 14):
        pytest.skip("this version of bioimageio.spec does not work with pydantic 2.14; pip install 'pydantic<2.14'")
    program = Path(sys.executable).with_name("bioimageio")
    run = subprocess.run(
        [program, "test", package],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"BIOIMAGEIO_CACHE_PATH": str(tmp_path / "cache"), "HTTPS_PROXY": "http://127.0.0.1:9"},
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    code = (
        "import sys, numpy as np\nfrom bioimageio.core import create_prediction_pipeline, load_description\n"
        "from bioimageio.core.digest_spec import get_test_input_sample\n"
        "model = load_description(sys.argv[1])\n"
        "for one in ('torchscript', 'onnx'):\n"
        "    pipeline = create_prediction_pipeline(model, weight_format=one, devices=['cpu'])\n"
        "    found = pipeline.predict_sample_without_blocking(get_test_input_sample(model))\n"
        "    (maps,) = found.members.values()\n"
        "    np.save(sys.argv[2] + one + '.npy', maps.data.to_numpy())\n"
    )
    subprocess.run([sys.executable, "-c", code, package, f"{tmp_path}/"], check=True, capture_output=True)
    with zipfile.ZipFile(package) as archive:
        expected = np.load(io.BytesIO(archive.read("test_output.npy")))
    for one in ("torchscript", "onnx"):
        assert np.abs(np.load(tmp_path / f"{one}.npy") - expected).max() <= 1e-4


def test_a_package_finds_the_objects_of_its_model(package):
    picture, _ = simulate_nuclei((180, 230), n_nuclei=30, seed=5)
    expected, found = segment_image(picture, "nuclei"), segment_image(picture, str(package))
    assert found.labels.max() == expected.labels.max() > 10
    assert (found.labels > 0)[expected.labels > 0].mean() > 0.99
    assert found.familiarity == expected.familiarity or found.familiarity is not None


def test_segment_runs_a_package(package, tmp_path, cellseg):
    from cellseg_nb.data.io import write_image

    picture, _ = simulate_nuclei((128, 128), n_nuclei=12, seed=1)
    write_image(tmp_path / "a.tif", picture, "YX")
    code, _, said = cellseg("segment", tmp_path / "a.tif", "--model", package, "--out", tmp_path / "out")
    assert code == 0, said
    assert (tmp_path / "out/a_labels.tif").is_file() and (tmp_path / "out/objects.csv").is_file()


def test_a_package_for_stacks_comes_back(tmp_path):
    export_model(load_bundle("membranes3d"), "bioimageio", tmp_path / "m.zip")
    stack = simulate_germline((16, 64, 64), seed=2)[0][0]
    expected = segment_stack(stack, "membranes3d").boundaries
    found = segment_stack(stack, str(tmp_path / "m.zip"))
    assert np.abs(found.boundaries - expected).max() < 0.05  # bfloat16 in one of them
    assert found.labels.max() > 1


def layers(stack, weights, name):
    """Two layers, written out: group normalisation, convolution, ReLU."""
    for n in (1, 2):
        one = f"{name}.basic_module.SingleConv{n}."
        scale, shift, kernel = (weights[one + end] for end in ("groupnorm.weight", "groupnorm.bias", "conv.weight"))
        groups = 8 if len(scale) >= 8 else 1
        parts = stack.reshape(len(stack), groups, -1)
        mean, variance = parts.mean(2, keepdim=True), parts.var(2, keepdim=True, unbiased=False)
        normalised = ((parts - mean) / (variance + 1e-5).sqrt()).reshape(stack.shape)
        shape = (1, -1, 1, 1, 1)
        stack = F.conv3d(normalised * scale.reshape(shape) + shift.reshape(shape), kernel, padding=1).clamp(min=0)
    return stack


@pytest.mark.needs_data
def test_real_checkpoint_of_pytorch_3dunet(tmp_path):
    path = Path(os.environ["CELLSEG_DATA"]) / "checkpoints/pytorch3dunet_small.pytorch"
    bundle = load_bundle(import_model(path, tmp_path / "model"))
    found = torch.load(path, "cpu", weights_only=True)
    weights = found.get("model_state_dict", found)
    weights = {name: one.float() for name, one in weights.items()}
    given = torch.from_numpy(trial_batch((1, 16, 32, 32), seed=3))
    kept = []
    stack = given
    for level in range(4):
        stack = layers(F.max_pool3d(stack, 2) if level else stack, weights, f"encoders.{level}")
        kept.insert(0, stack)
    for level in range(3):
        stack = stack.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
        stack = layers(torch.cat([kept[level + 1], stack], 1), weights, f"decoders.{level}")
    expected = F.conv3d(stack, weights["final_conv.weight"], weights["final_conv.bias"])
    with torch.inference_mode():
        difference = (torch.sigmoid(bundle.network(given)) - torch.sigmoid(expected)).abs().max()
    assert float(difference) <= 1e-5
    assert bundle.specification.outputs == ("boundary",)
    labels = segment_stack(simulate_germline((16, 64, 64), seed=1)[0][0], bundle).labels
    assert labels.shape == (16, 64, 64)


def test_damaged_packages_are_refused_in_one_line(package, tmp_path):
    content = package.read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: len(content) // 2])
    with zipfile.ZipFile(tmp_path / "up.zip", "w") as archive:
        archive.writestr("../evil.txt", "x")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(10_001):
            archive.writestr(f"{n}", "")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    said = {"cut": "not a whole zip file", "up": "leaves", "bomb": "", "empty": "no package of BioImage.IO"}
    for name, text in said.items():
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            import_model(tmp_path / f"{name}.zip", tmp_path / "out")
        assert text in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() and not (tmp_path.parent / "evil.txt").exists()


def change(fields, path, value):
    """Set a value deep in a page."""
    *way, last = path
    for one in way:
        fields = fields[one]
    fields[last] = value


@pytest.mark.parametrize(
    "path, value, said",
    [
        (("weights", "torchscript", "sha256"), "0" * 64, "does not have the checksum"),
        (("weights", "torchscript", "source"), "gone.pt", "is missing in the package"),
        (("weights", "torchscript", "source"), "../../etc/passwd", "lies outside the package"),
        (("weights",), {"pytorch_state_dict": {"source": "w.pt"}}, "code of its author, which is not run"),
        (("inputs", 0, "axes", 2, "id"), "wave", "the axis 'wave'"),
        (("inputs", 0, "axes", 2, "type"), "time", "the axis 'y' .time. is unknown"),
        (("inputs", 0, "preprocessing"), [{"id": "custom", "kwargs": {}}], "prepared by custom"),
        (("outputs", 0, "postprocessing"), [], "largest difference"),
        (("outputs", 0, "axes", 2, "size"), {"tensor_id": "image", "axis_id": "y", "offset": -8}, "gives maps of"),
        (("outputs", 0, "axes", 1, "channel_names"), ["a", "b", "c"], "do not tell what is foreground"),
        (("format_version",), "0.3.6", "0.4 and 0.5 are read"),
        (("type",), "dataset", "describes no model"),
    ],
)
def test_pages_that_are_wrong_are_refused_in_one_line(package, tmp_path, path, value, said):
    folder, fields = unpacked(package, tmp_path / "p")
    change(fields, path, value)
    (folder / "bioimageio.yaml").write_text(yaml.safe_dump(fields))
    with pytest.raises((ValueError, FileNotFoundError), match=said) as caught:
        import_model(folder, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_version_0_4_is_read_too(package, tmp_path):
    folder, fields = unpacked(package, tmp_path / "p")
    shape = {"reference_tensor": "image", "scale": [1, 0, 1, 1], "offset": [0, 1.5, 0, 0]}
    old = {
        "format_version": "0.4.10",
        "type": "model",
        "name": "old",
        "license": "MIT",
        "weights": fields["weights"],
        "inputs": [
            {
                "name": "image",
                "axes": "bcyx",
                "data_type": "float32",
                "shape": {"min": [1, 1, 32, 32], "step": [0, 0, 32, 32]},
                "preprocessing": [
                    {
                        "name": "scale_range",
                        "kwargs": {"mode": "per_sample", "axes": "yx", "min_percentile": 1.0, "max_percentile": 99.8},
                    }
                ],
            }
        ],
        "outputs": [
            {
                "name": "maps",
                "axes": "bcyx",
                "data_type": "float32",
                "shape": shape,
                "postprocessing": [{"name": "sigmoid"}],
            }
        ],
        "test_inputs": ["test_input.npy"],
        "test_outputs": ["test_output.npy"],
    }
    (folder / "bioimageio.yaml").unlink()
    (folder / "rdf.yaml").write_text(yaml.safe_dump(old))
    with pytest.raises(ValueError, match="--channels with 3 of"):
        import_model(folder, tmp_path / "out")
    bundle = load_bundle(import_model(folder, tmp_path / "out", channels=["foreground", "boundary", "unused"]))
    assert bundle.specification.outputs == ("foreground", "boundary")
    picture, truth = simulate_nuclei((160, 160), n_nuclei=15, seed=4)
    assert abs(int(segment_image(picture, bundle).labels.max()) - len(np.unique(truth)) + 1) <= 4


def test_checkpoints_that_do_not_fit_name_the_tensors(tmp_path):
    from cellseg_nb.models.unet3d import UNet3D

    weights = dict(UNet3D(1, 1, 8, 2).state_dict())
    for changed, said in [
        ({name: one for name, one in weights.items() if name != "final_conv.bias"}, "it lacks final_conv.bias"),
        (weights | {"extra.weight": torch.ones(1)}, "too many: extra.weight"),
    ]:
        torch.save({"model_state_dict": changed}, tmp_path / "a.pytorch")
        with pytest.raises(ValueError, match=said):
            import_model(tmp_path / "a.pytorch", tmp_path / "out")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "a.pytorch")
    with pytest.raises(ValueError, match="would run foreign code"):
        import_model(tmp_path / "a.pytorch", tmp_path / "out")


@pytest.mark.parametrize(
    "shape, said",
    [
        (["b", 3, "y", "x"], r"takes \['b', 3, 'y', 'x'\]; needed are four axes .*, and, in files .* one channel"),
        (["y", "x"], r"takes \['y', 'x'\]; needed are four axes"),
        ([1, 1, 64, 64], None),
        (["b", 1, "y", "x"], None),
    ],
)
def test_files_that_say_nothing_of_themselves(shape, said, tmp_path, cellseg):
    from onnx import TensorProto, helper, save

    ends = [helper.make_tensor_value_info(one, TensorProto.FLOAT, shape) for one in ("seen", "maps")]
    graph = helper.make_graph([helper.make_node("Identity", ["seen"], ["maps"])], "same", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 18)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="--channels, such as foreground,boundary"):
        import_model(tmp_path / "a.onnx", tmp_path / "out")
    code, told, error = cellseg("model", "import", tmp_path / "a.onnx", tmp_path / "out", "--channels", "foreground")
    if said:
        assert code == 2 and re.search(said, error) and len(error.strip().splitlines()) == 1
        return
    assert code == 0 and "licence: not stated" in told
    seen = trial_batch((1, 100, 130))  # larger than a fixed size
    with torch.inference_mode():
        found = load_bundle(tmp_path / "out").network(torch.from_numpy(seen)).numpy()
    np.testing.assert_allclose(found, seen, atol=1e-5)


def test_commands_say_in_one_line_what_is_wrong(tmp_path, cellseg):
    (tmp_path / "a.onnx").write_bytes(b"")
    for words, said in [
        (("model", "export", "nuclei", tmp_path / "a", "--to", "keras"), "models are written for onnx"),
        (("model", "export", "nuclei", "--to", "onnx"), "say once where to"),
        (("model", "import", tmp_path / "no.zip", tmp_path / "b"), "there is no"),
        (("model", "show", tmp_path / "no.zip"), "no.zip"),
        (("model", "show", tmp_path / "a.onnx"), "is a file and no model folder; 'cellseg model import' makes one"),
    ]:
        code, _, error = cellseg(*words)
        assert code == 2 and said in error and "Traceback" not in error and len(error.strip().splitlines()) == 1
