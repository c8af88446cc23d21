"""Models as releases: published to and fetched from a server on this computer that answers as GitHub does."""

import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cellseg_nb.models.bundle import (
    FORMAT_VERSION,
    CountSpecification,
    find_bundle,
    list_bundles,
    read_specification,
    save_bundle,
)
from cellseg_nb.run.cli import app
from cellseg_nb.run.rehearsal import add_release, pretend_github
from cellseg_nb.run.releases import (
    PARTS,
    cached_models,
    fetch_model,
    init_model,
    list_releases,
    pack_model,
    pack_release,
    release,
)

REPO = "lab/models"
NAME = "membranes3d"  # the smallest of the models that come with the package


@pytest.fixture
def github(tmp_path, monkeypatch):
    """The server, with a token, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    with pretend_github(repo=REPO) as running:
        monkeypatch.setenv("GITHUB_API_URL", running.api)
        yield running


@pytest.fixture
def stranger(github, monkeypatch):
    """The same for somebody without a token."""
    monkeypatch.delenv("GITHUB_TOKEN")
    return github


def publish(github, version, **facts):
    """Put a release of the small model onto the server, with other facts than the true ones."""
    sent = pack_release(NAME, version, REPO)
    head, _, line = sent.notes.partition("<!-- cellseg_nb ")
    known = json.loads(line.partition(" -->")[0]) | facts
    notes = f"{head}<!-- cellseg_nb {json.dumps(known)} -->"
    return add_release(github, sent.tag, sent.files, notes)


def add_archive(github, version, entries):
    """Put a release with these files in its archive onto the server, with the right checksum."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    content, archive = packed.getvalue(), f"{NAME}-{version}.zip"
    checksum = f"{hashlib.sha256(content).hexdigest()}  {archive}\n".encode()
    files = {archive: content, f"{archive}.sha256": checksum}
    return add_release(github, f"{NAME}-{version}", files)


def cellseg(*arguments, code=0):
    """Run the command; give what it printed."""
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done


def left_behind(tmp_path):
    """Files in the cache."""
    return sorted(one.name for one in (tmp_path / "user").rglob("*") if one.is_file())


# --- fetching --------------------------------------------------------------------------------------


def test_latest_a_version_and_what_is_here(stranger):
    for version in ("v1.9", "v1.10", "v0.3"):
        publish(stranger, version)
    assert fetch_model("v0.3", NAME, REPO).name == "v0.3"
    assert fetch_model("latest", NAME, REPO).name == "v1.10"
    assert fetch_model("1.9", NAME, REPO).name == "v1.9"
    assert list(cached_models(NAME, REPO)) == ["v1.10", "v1.9", "v0.3"]
    bundle = init_model(None, NAME, REPO)
    assert bundle.folder.name == "v1.10" and bundle.specification.name == NAME
    assert not bundle.network.training
    assert init_model(bundle.folder).folder == bundle.folder
    assert init_model(str(bundle.folder)).folder == bundle.folder


def test_a_fetched_version_needs_no_network(stranger, monkeypatch):
    publish(stranger, "v1.0")
    fetch_model("v1.0", NAME, REPO)
    asked = len(stranger.asked)
    assert fetch_model("v1", NAME, REPO) == fetch_model(None, NAME, REPO)
    assert len(stranger.asked) == asked


def test_many_releases_come_in_pages(stranger):
    stranger.page_size = 2
    for number in range(5):
        publish(stranger, f"v1.{number}")
    assert [one.version for one in list_releases(NAME, REPO)][::4] == ["v1.4", "v1.0"]
    assert fetch_model("v1.0", NAME, REPO).name == "v1.0"


def test_missing_version(stranger):
    publish(stranger, "v1.0")
    publish(stranger, "v1.1")
    with pytest.raises(FileNotFoundError, match="no release 'v2'; there are v1.1, v1.0"):
        fetch_model("v2", NAME, REPO)
    with pytest.raises(FileNotFoundError, match="none of this model"):
        fetch_model("latest", "nuclei", REPO)
    with pytest.raises(FileNotFoundError, match="shows no repository lab/other"):
        fetch_model("latest", NAME, "lab/other")
    with pytest.raises(ValueError, match="not 'newest'"):
        fetch_model("newest", NAME, REPO)
    with pytest.raises(ValueError, match="not '../x'"):
        fetch_model("v1", "../x", REPO)


def test_none_takes_what_is_here_and_else_the_latest(stranger, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no release 'latest'; it has none of this model"):
        init_model(None, NAME, REPO)
    publish(stranger, "v1.0")
    assert init_model(None, NAME, REPO).folder.name == "v1.0"
    publish(stranger, "v1.1")
    assert init_model(None, NAME, REPO).folder.name == "v1.0"  # it is here
    assert init_model("latest", NAME, REPO).folder.name == "v1.1"


def test_none_without_anything_here_and_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("GITHUB_API_URL", "http://127.0.0.1:9")
    with pytest.raises(
        ConnectionError,
        match="no release of .* is on this computer.*nuclei, nuclei-fast, nuclei-stained, phase-cells, stars",
    ):
        init_model(None, NAME, REPO)


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GITHUB_TOKEN", raising=False)
    with pretend_github(repo=REPO) as github:
        monkeypatch.setenv("GITHUB_API_URL", github.api)
        publish(github, "v1.0")
        folder = fetch_model("latest", NAME, REPO)
    # the server is gone
    with pytest.raises(ConnectionError, match="perhaps there is no network.*on this computer: v1.0"):
        fetch_model("latest", NAME, REPO)
    with pytest.raises(ConnectionError, match="no release of nuclei"):
        fetch_model("v1.0", "nuclei", REPO)
    assert fetch_model("v1.0", NAME, REPO) == fetch_model(None, NAME, REPO) == folder
    line = cellseg("model", "fetch", "--name", NAME, "--repo", REPO, code=2).stderr
    assert line.startswith("error: ") and line.count("\n") == 1


def test_rate_limit(stranger, monkeypatch):
    publish(stranger, "v1.0")
    stranger.requests_left = 1
    fetch_model("v1.0", NAME, REPO)
    with pytest.raises(ConnectionError, match=r"no more requests until \d\d:\d\d.*on this comp") as seen:
        fetch_model("latest", NAME, REPO)
    assert "with a token in GITHUB_TOKEN" in str(seen.value)
    monkeypatch.setenv("GITHUB_TOKEN", "secret")
    with pytest.raises(ConnectionError) as seen:
        fetch_model("latest", NAME, REPO)
    assert "with a token" not in str(seen.value)


# --- checks ----------------------------------------------------------------------------------------


def test_wrong_checksum_is_refused_and_deleted(stranger, tmp_path):
    publish(stranger, "v1.0", sha256=hashlib.sha256(b"another file").hexdigest())
    with pytest.raises(ValueError, match="refused and deleted"):
        fetch_model("v1.0", NAME, REPO)
    assert left_behind(tmp_path) == []
    line = cellseg("model", "fetch", "v1.0", "--name", NAME, "--repo", REPO, code=2).stderr
    assert "does not have the checksum" in line


def test_checksum_from_a_file_when_the_notes_were_written_by_hand(stranger, tmp_path):
    files = pack_release(NAME, "1.0", REPO).files
    add_release(stranger, f"{NAME}-v1.0", files, "We trained it again.")
    assert fetch_model("v1.0", NAME, REPO).is_dir()
    assert left_behind(tmp_path) == sorted(PARTS)
    wrong = files | {f"{NAME}-v1.1.zip": files[f"{NAME}-v1.0.zip"]}
    wrong[f"{NAME}-v1.1.zip.sha256"] = b"0" * 64
    add_release(stranger, f"{NAME}-v1.1", wrong)
    with pytest.raises(ValueError, match="refused and deleted"):
        fetch_model("v1.1", NAME, REPO)
    add_release(stranger, f"{NAME}-v1.2", {f"{NAME}-v1.2.zip": b""})
    with pytest.raises(ValueError, match="states no checksum"):
        fetch_model("v1.2", NAME, REPO)
    assert list(cached_models(NAME, REPO)) == ["v1.0"]


def test_newer_format(stranger):
    publish(stranger, "v1.0")
    publish(stranger, "v2.0", format_version=FORMAT_VERSION + 1, cellseg_nb="7.5.0")
    with pytest.raises(ValueError, match="'cellseg_nb>=7.5.0'; or take v1.0"):
        fetch_model("v2.0", NAME, REPO)
    with pytest.warns(UserWarning, match="'cellseg_nb>=7.5.0'; until then, v1.0 is used"):
        assert fetch_model("latest", NAME, REPO).name == "v1.0"
    said = cellseg("model", "fetch", "--name", NAME, "--repo", REPO).stderr
    assert "warning: membranes3d v2.0 has format" in said


def test_newer_format_that_shows_only_after_the_download(stranger, tmp_path):
    fields = json.loads((find_bundle(NAME) / "model.json").read_text(encoding="utf-8"))
    newer = json.dumps(fields | {"format_version": FORMAT_VERSION + 1})
    add_archive(stranger, "v3.0", {"model.json": newer, "weights.safetensors": b""})
    with pytest.raises(ValueError, match="pip install --upgrade cellseg_nb"):
        fetch_model("v3.0", NAME, REPO)
    assert left_behind(tmp_path) == []


def test_archive_that_leaves_its_folder(stranger, tmp_path):
    add_archive(stranger, "v3.0", {"../../model.json": b"{}"})
    with pytest.raises(ValueError, match="leaves the folder"):
        fetch_model("v3.0", NAME, REPO)
    assert left_behind(tmp_path) == []


def test_archive_without_weights(stranger, tmp_path):
    text = (find_bundle(NAME) / "model.json").read_text(encoding="utf-8")
    add_archive(stranger, "v3.0", {"model.json": text})
    with pytest.raises(ValueError, match="deleted: its weights.safetensors is missing"):
        fetch_model("v3.0", NAME, REPO)
    assert left_behind(tmp_path) == []


def test_private_repository(github, monkeypatch):
    publish(github, "v1.0")
    github.private = True
    folder = fetch_model("v1.0", NAME, REPO)
    assert (folder / "model.json").is_file()
    monkeypatch.delenv("GITHUB_TOKEN")
    with pytest.raises(FileNotFoundError, match="private and needs a token in GITHUB_TOKEN"):
        fetch_model("v2.0", NAME, REPO)
    monkeypatch.setenv("GITHUB_TOKEN", "expired")
    with pytest.raises(PermissionError, match="does not know the token"):
        fetch_model("v2.0", NAME, REPO)


# --- publishing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_bundles())
def test_every_model_goes_there_and_back(github, name):
    sent = release(name, "1.0", repo=REPO, notes="The first.")
    assert sent.page and "The first." in github.releases[0]["body"]
    assert not github.releases[0]["draft"]
    folder = fetch_model("latest", name, REPO)
    for part in find_bundle(name).iterdir():
        assert part.name in PARTS and (folder / part.name).read_bytes() == part.read_bytes()
    assert read_specification(folder) == read_specification(name)


def test_a_model_that_counts(github, tmp_path):
    from cellseg_nb.models.zoo import build_network

    specification = CountSpecification(name="count-mine", licence="CC0-1.0", calibration={"level": 0.9})
    network = build_network(**specification.network.model_dump(), out_channels=1)
    release(save_bundle(tmp_path / "mine", network, specification), "0.1", repo=REPO)
    bundle = init_model("latest", "count-mine", REPO)
    assert bundle.specification == specification
    name, weight = next(iter(network.state_dict().items()))
    assert (bundle.network.state_dict()[name] - weight).abs().max() < 1e-3


def test_packed_bytes_depend_on_content_only(tmp_path):
    copy = shutil.copytree(find_bundle(NAME), tmp_path / "copy")
    (copy / "notes.txt").write_text("of no interest")
    for path in copy.iterdir():
        path.touch()
        path.chmod(0o600)
    assert pack_model(copy) == pack_model(NAME)


def test_published_versions_stay(github):
    release(NAME, "1.0", repo=REPO)
    for version in ("1.0", "v1", "1.0.0"):
        with pytest.raises(ValueError, match="membranes3d v1.0 already"):
            release(NAME, version, repo=REPO)
    assert len(github.releases) == 1


@pytest.mark.parametrize("breaks", [".zip", ".sha256"])
def test_interrupted_upload_leaves_nothing_public(github, breaks):
    github.upload_breaks = breaks
    with pytest.raises(ConnectionError, match="nothing was published"):
        release(NAME, "1.0", repo=REPO)
    assert github.releases == []
    github.upload_breaks = ""
    release(NAME, "1.0", repo=REPO)
    assert fetch_model("latest", NAME, REPO).name == "v1.0"


def test_draft_that_could_not_be_removed(github, monkeypatch):
    """As after a power failure: the next call removes it."""
    sent = pack_release(NAME, "1.0", REPO)
    add_release(github, sent.tag, {}, sent.notes, draft=True)
    assert list_releases(NAME, REPO) == []
    release(NAME, "1.0", repo=REPO)
    assert [one["draft"] for one in github.releases] == [False]


def test_draft_of_somebody_else_stays(github):
    add_release(github, f"{NAME}-v1.0", {}, "in preparation", draft=True)
    with pytest.raises(ValueError, match="not made by this command"):
        release(NAME, "1.0", repo=REPO)
    assert len(github.releases) == 1


def test_publishing_needs_a_token(stranger, monkeypatch):
    with pytest.raises(PermissionError, match="GITHUB_TOKEN"):
        release(NAME, "1.0", repo=REPO)
    monkeypatch.setenv("GITHUB_TOKEN", "expired")
    with pytest.raises(PermissionError, match="does not know the token"):
        release(NAME, "1.0", repo=REPO)
    assert stranger.releases == []


def test_what_cannot_be_published(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model"):
        release("nucleus", "1.0", dry_run=True)
    with pytest.raises(ValueError, match="v1.2 or v1.2.3, not 'new'"):
        release(NAME, "new", dry_run=True)
    with pytest.raises(ValueError, match="OWNER/NAME"):
        release(NAME, "1.0", dry_run=True, repo="models")
    copy = shutil.copytree(find_bundle(NAME), tmp_path / "copy")
    fields = json.loads((copy / "model.json").read_text()) | {"name": "my cells", "licence": ""}
    (copy / "model.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="'my cells'; a release needs a name"):
        release(copy, "1.0", dry_run=True)
    (copy / "model.json").write_text(json.dumps(fields | {"name": "mine"}))
    with pytest.warns(UserWarning, match="states no licence"):
        release(copy, "1.0", dry_run=True)


# --- commands --------------------------------------------------------------------------------------


def test_commands(github, tmp_path):
    notes = tmp_path / "notes.md"
    notes.write_text("Sees *thin* walls, too.\n")
    line = ["model", "release", NAME, "--version", "1.0", "--repo", REPO, "--notes", notes]
    shown = cellseg(*line, "--dry-run").stdout
    assert "membranes3d-v1.0.zip  " in shown and "*thin* walls" in shown and "dry run" in shown
    assert github.asked == [] and github.releases == []
    assert f"published: {github.api}/{REPO}/releases/tag/membranes3d-v1.0" in cellseg(*line).stdout
    assert "upload    published before" in cellseg(*line).stdout
    copy = shutil.copytree(find_bundle("nuclei"), tmp_path / "copy")
    fields = json.loads((copy / "model.json").read_text()) | {"name": NAME}
    (copy / "model.json").write_text(json.dumps(fields))
    again = cellseg("model", "release", copy, *line[3:], code=2).stderr
    assert again.startswith("error: ") and "already" in again and again.count("\n") == 1
    fetched = cellseg("model", "fetch", "--name", NAME, "--repo", REPO).stdout
    folder = Path(fetched.strip().splitlines()[-1])
    assert (folder / "weights.safetensors").is_file() and folder.name == "v1.0"
    assert json.loads(cellseg("model", "show", folder).stdout)["name"] == NAME


def test_commands_with_a_wrong_argument(github, tmp_path):
    assert "Missing option" in cellseg("model", "release", NAME, code=2).stderr
    line = ["model", "release", NAME, "--version", "1.0", "--repo", REPO, "--notes"]
    assert "gone.md" in cellseg(*line, tmp_path / "gone.md", code=2).stderr
    assert "OWNER/NAME" in cellseg("model", "fetch", "--repo", "models", code=2).stderr
    shown = cellseg("model", "fetch", "v9", "--name", NAME, "--repo", REPO, code=2).stderr
    assert "has no release 'v9'; it has none of this model" in shown


# --- from a configuration to a release ---------------------------------------------------------------

TINY = """
name: tiny
licence: CC0-1.0
network: {encoder: resnet18, encoder_depth: 3, decoder_channels: [16, 8, 8]}
data: {dataset: simulated-nuclei, images: 4}
targets: [foreground, boundary]
training: {epochs: 2, crops_per_epoch: 4, batch_size: 2, crop_px: 64, device: cpu}
"""


def test_one_command_from_training_to_release(github, tmp_path, monkeypatch):
    """Broken off in the upload; the same command goes on, trains nothing again, and sends the same bytes."""
    config, out = tmp_path / "tiny.yml", tmp_path / "run"
    config.write_text(TINY)
    line = ["model", "release", config, "training.crops_per_epoch=6", "--version", "0.1"]
    line += ["--repo", REPO, "--out", out, "--evaluate", "val"]
    shown = cellseg(*line, "--dry-run").stdout
    steps = [one.split()[0] for one in shown.splitlines() if one.split()[:1] and one.split()[0] in STEPS]
    assert steps == ["train", "evaluate", "pack", "check"] and not github.releases
    assert "| val | AP@.5 |" in shown
    weights = (out / "model" / "weights.safetensors").read_bytes()
    github.upload_breaks = ".sha256"
    assert "nothing was published" in cellseg(*line, code=2).stderr
    github.upload_breaks = ""
    monkeypatch.setattr("cellseg_nb.run.publish.score_split", None)  # what is scored is not scored again
    monkeypatch.setattr("cellseg_nb.train.learner.fit", None)  # nor trained
    done = cellseg(*line).stdout
    assert f"published: {github.api}/{REPO}/releases/tag/tiny-v0.1" in done and "verify " in done
    assert (out / "model" / "weights.safetensors").read_bytes() == weights
    monkeypatch.delenv("GITHUB_TOKEN")
    bundle = init_model("v0.1", "tiny", REPO)
    assert bundle.specification.scores["val"]["pictures"] > 1
    assert "published before" in cellseg(*line).stdout and len(github.releases) == 1


STEPS = ("train", "evaluate", "pack", "check", "upload", "verify")


COUNTING = """
name: colonies
folds: 2
defaults:
  task: count
  licence: CC0-1.0
  network: {encoder: resnet18, encoder_depth: 3, decoder_channels: [16, 8, 8]}
  data: {dataset: simulated-nuclei, simulated: 12, split: null, validation_fraction: 0}
  training: {epochs: 1, steps_per_epoch: 1, batch_size: 2, crop_px: 64, device: cpu}
"""


def test_an_experiment_becomes_a_release_with_intervals(github, tmp_path):
    """Folds give scores and intervals, and a model is trained on all pictures."""
    config = tmp_path / "colonies.yml"
    config.write_text(COUNTING)
    line = ["model", "release", config, "--version", "0.1", "--repo", REPO, "--out", tmp_path / "runs"]
    shown = cellseg(*line).stdout
    assert "evaluate  cross-validation: folds 2, MAE " in shown and "| cross-validation | MAE |" in shown
    about = init_model("v0.1", "colonies", REPO).specification
    assert len(about.calibration["residuals"]) == 2 and about.scores["cross-validation"]["folds"] == 2
    assert "is an experiment; change it there" in cellseg(*line, "training.epochs=2", code=2).stderr


def test_a_release_with_a_wrong_argument(github, tmp_path):
    config = tmp_path / "tiny.yml"
    config.write_text(TINY)
    line = ["model", "release", config, "--version", "0.1", "--out", tmp_path / "run"]
    assert "epoch" in cellseg(*line, "training.epoch=1", code=2).stderr
    shown = cellseg("model", "release", NAME, "--version", "1", "--evaluate", "test", code=2).stderr
    assert "are for a YAML file; membranes3d is a model already" in shown
    assert "there is no file" in cellseg("model", "release", tmp_path / "no.yml", "--version", "1", code=2).stderr
    assert not (tmp_path / "run").exists()
    config.write_text(TINY.replace("images: 4", "images: 4, split: val"))
    shown = cellseg(*line, "--evaluate", "val", "training.epochs=1", "training.crops_per_epoch=2", code=2).stderr
    assert "the split 'val' is what is trained on; evaluate on another one" in shown
