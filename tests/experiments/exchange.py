"""Each model in each format: largest difference, size, scores of a round trip on dsb2018 test, and what `bioimageio test` says.

    python tests/experiments/exchange.py [--pictures 20] [--test]

The scores are AP over all objects of the fluorescence pictures (test split, for reporting only); without --pictures all of them.
--test runs the command of BioImage.IO on every package.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from cellseg_nb.data.catalog import load_dataset
from cellseg_nb.data.io import luminance, read_image
from cellseg_nb.measure.matching import score_images
from cellseg_nb.models.bundle import load_bundle
from cellseg_nb.models.exchange import TARGETS, export_model, import_model
from cellseg_nb.segment.image import segment_image

BUNDLES = ("nuclei", "count-cells", "membranes3d", "glomeruli", "marks", "stars")
