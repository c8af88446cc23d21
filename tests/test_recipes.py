"""A recipe of a few lines is trained by the command `cellseg`: log, checkpoint, resume, folds and a bundle."""

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from fastai.data.load import DataLoader
from test_cli import error_of, run

from cellseg_nb.models.bundle import NetworkSettings, Normalisation, load_bundle
from cellseg_nb.train.recipe import RECIPES, Parts, Recipe, register, split
from cellseg_nb.train.settings import DataSettings, StartSettings, TrainingSettings


class Picture(NamedTuple):
    name: str
    image: np.ndarray


class ToyConfig(StartSettings):
    task: Literal["toy"] = "toy"
    outputs: tuple[Literal["foreground"], ...] = ("foreground",)
    data: DataSettings = DataSettings()
    network: NetworkSettings = NetworkSettings(encoder_depth=3, decoder_channels=(16, 8, 8))
    normalisation: Normalisation = Normalisation()
    training: TrainingSettings = TrainingSettings()


class Toy(Recipe):
    """Which pixels are bright?"""

    name, config = "toy", ToyConfig

    def read(self, config):
        rng = np.random.default_rng(config.seed)
        pictures = [Picture(f"p{n}", rng.random((32, 32), np.float32)) for n in range(6)]
        return split(pictures, range(6), config.data)

    def loaders(self, config, parts: Parts, device):
        class Pairs(list):
            epoch = 0

        images = ([torch.tensor(one.image)[None] for one in some] for some in parts[:2])
        pairs = (Pairs((one, (one > 0.5).float()) for one in some) for some in images)
        return tuple(DataLoader(some, bs=2, num_workers=0) for some in pairs)


@pytest.fixture
def toy(tmp_path):
    register(Toy())
    fields = {"name": "toy", "task": "toy", "training": {"epochs": 2, "device": "cpu", "average": 0}}
    (tmp_path / "toy.yml").write_text(yaml.safe_dump(fields), encoding="utf-8")
    yield tmp_path / "toy.yml"
    RECIPES[:] = [one for one in RECIPES if one.name != "toy"]


def test_a_toy_recipe_is_trained_resumed_and_cross_validated(toy, tmp_path):
    shown = run("train", toy, "--out", tmp_path / "run").stdout
    assert shown.endswith(f"model: {tmp_path / 'run' / 'model'}\n")
    log = pd.read_csv(tmp_path / "run" / "log.csv")
    assert list(log)[:3] == ["epoch", "train_loss", "valid_loss"] and len(log) == 2
    assert (tmp_path / "run" / "checkpoint.pt").is_file()
    assert load_bundle(tmp_path / "run" / "model").specification.outputs == ("foreground",)
    assert "go on with --resume" in error_of("train", toy, "--out", tmp_path / "run")
    run("train", toy, "--out", tmp_path / "run", "--resume")
    assert "training.epoch: unknown key" in error_of("train", toy, "training.epoch=3")
    table = run("train", toy, "--folds", 2, "--out", tmp_path / "folds").stdout
    assert "valid_loss" in table and "pooled" in table
    scores = pd.read_csv(tmp_path / "folds" / "cross_validation.csv")
    assert scores["pictures"].tolist() == [3, 3, 6, 6, 6] and scores["valid_loss"].notna().all()
