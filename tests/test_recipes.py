"""A recipe of a few lines is trained by the command `cellseg`: log, checkpoint, resume, folds and a bundle."""

from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from fastai.data.load import DataLoader
from test_cli import error_of, run

from cellseg_nb.models.bundle import NetworkSettings, Normalisation, load_bundle
from cellseg_nb.train.recipe import RECIPES, Recipe, register, split
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

    def loaders(self, config, parts, device):
        class Pairs(list):
            epoch = 0  # the loop says which

        images = ([torch.tensor(one.image)[None] for one in some] for some in parts[:2])
        pairs = (Pairs((one, (one > 0.5).float()) for one in some) for some in images)
        return tuple(DataLoader(some, bs=2, num_workers=0) for some in pairs)


def test_a_toy_recipe_is_trained_resumed_and_cross_validated(tmp_path):
    register(Toy())
    toy, out = tmp_path / "toy.yml", tmp_path / "run"
    toy.write_text("{name: toy, task: toy, training: {epochs: 2, device: cpu}}", encoding="utf-8")
    assert run("train", toy, "--out", out).stdout.endswith(f"model: {out / 'model'}\n")
    log = pd.read_csv(out / "log.csv")
    assert list(log)[:3] == ["epoch", "train_loss", "valid_loss"] and len(log) == 2
    assert load_bundle(out / "model").specification.outputs == ("foreground",)
    assert "go on with --resume" in error_of("train", toy, "--out", out)
    run("train", toy, "--out", out, "--resume")
    assert "training.epoch: unknown key" in error_of("train", toy, "training.epoch=3")
    run("train", toy, "--folds", 2, "--out", out)
    scores = pd.read_csv(out / "cross_validation.csv")
    assert scores["pictures"].tolist() == [3, 3, 6, 6, 6] and scores["valid_loss"].notna().all()
    shown = run("experiment", toy, "--curve", "1,2,4", "--predict", 5, "--out", out).stdout
    assert "\n5 pictures: valid_loss about " in shown and "would lower it by " in shown
    points = pd.read_csv(out / "toy" / "curve" / "curve.csv")
    assert list(points) == ["n", "valid_loss", "seconds"] and points["n"].tolist() == [1, 2, 4]
    RECIPES[:] = [one for one in RECIPES if one.name != "toy"]
