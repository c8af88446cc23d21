"""Packaging, driven by settings.ini: everything a release needs is written there once."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
SETTINGS = ConfigParser(delimiters=["="], interpolation=None)
SETTINGS.read(HERE / "settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]
EXTRAS = {
    key.removesuffix("_requirements"): value.split() for key, value in SETTINGS.items() if key.endswith("_requirements")
}

setup(
    name=SETTINGS["lib_name"],
    version=SETTINGS["version"],
    description=SETTINGS["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=SETTINGS["author"],
    author_email=SETTINGS["author_email"],
    url=SETTINGS["git_url"],
    keywords=SETTINGS["keywords"],
    license="BSD-3-Clause",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    packages=find_packages(include=["cellseg_nb", "cellseg_nb.*"]),
    package_data={
        "cellseg_nb": [
            "bundles/*/*",
            "data/tables/*",
            "napari.yaml",
            "configs/*",
            "configs/project/*",
            "apps/static/*",
            "run/service/pages/*",
            "run/service/deploy/*",
        ]
    },
    python_requires=f">={SETTINGS['min_python']}",
    install_requires=SETTINGS["requirements"].split(),
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": SETTINGS["console_scripts"].split("\n"),
        "napari.manifest": [f"{SETTINGS['lib_name']}={SETTINGS['lib_path']}:napari.yaml"],
        "nbdev": [f"{SETTINGS['lib_name']}={SETTINGS['lib_path']}._modidx:d"],
    },
    zip_safe=False,
)
