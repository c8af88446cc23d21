"""Each model in each format: largest difference, size, scores of a round trip on dsb2018 test, and what `bioimageio test` says.

    python tests/experiments/exchange.py [--pictures 20] [--test]

The scores are AP over all objects of the fluorescence pictures (test split, for reporting only); without --pictures all of them.
--test runs the command of BioImage.IO on every package.
"""

BUNDLES = ("nuclei", "count-cells", "membranes3d", "glomeruli", "marks", "stars")
