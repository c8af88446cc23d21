"""Files such as lie in a folder of pictures and are none: cut off, damaged, of strange numbers, declared too large, oddly named.

Each kind is a function that fills a folder; `good_files` writes pictures that must be counted whatever lies beside them.
"""

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image as Picture

OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


def spots(number: int = 9, size: int = 96, seed: int = 3) -> np.ndarray:
    """Bright discs on a dark ground; uint8; (Y, X)."""
    rng, (y, x) = np.random.default_rng(seed), np.mgrid[:size, :size]
    picture = np.full((size, size), 12.0)
    for cy, cx in rng.integers(12, size - 12, (number, 2)):
        picture[np.hypot(y - cy, x - cx) < 6] = 190
    return np.clip(picture + rng.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)


def good_files(folder: Path) -> list[str]:
    """Pictures as they should be: names of their results."""
    picture = spots()
    tifffile.imwrite(folder / "a_good.tif", picture)
    Picture.fromarray(picture).save(folder / "m_good.png")
    tifffile.imwrite(folder / "z_good.ome.tif", picture, metadata={"axes": "YX"})
    return ["a_good", "m_good", "z_good"]


def samples() -> dict[str, bytes]:
    """The same picture in several formats."""
    picture, made = spots(), {}
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"odd_{os.getpid()}"
    folder.mkdir(exist_ok=True)
    writers = {
        "tif": lambda path: tifffile.imwrite(path, picture),
        "zip.tif": lambda path: tifffile.imwrite(path, picture, compression="zlib", tile=(32, 32)),
        "ij.tif": lambda path: tifffile.imwrite(path, picture, imagej=True),
        "ome.tif": lambda path: tifffile.imwrite(path, picture, metadata={"axes": "YX"}),
        "png": lambda path: Picture.fromarray(picture).save(path),
        "jpg": lambda path: Picture.fromarray(picture).save(path),
    }
    for ending, write in writers.items():
        path = folder / f"x.{ending}"
        write(path)
        made[ending] = path.read_bytes()
        path.unlink()
    folder.rmdir()
    return made


def cut_off(folder: Path, rng: np.random.Generator) -> None:
    """Copies that broke off, from nothing to the last byte but one."""
    for ending, content in samples().items():
        for share in (0, 0.01, 0.1, 0.5, 0.95):
            (folder / f"cut_{share}.{ending}").write_bytes(content[: int(share * len(content))])
        (folder / f"cut_last.{ending}").write_bytes(content[:-1])


def flipped(folder: Path, rng: np.random.Generator) -> None:
    """One to three bits wrong, where a file says what it is."""
    for ending, content in samples().items():
        for number in range(8):
            wrong = bytearray(content)
            for _ in range(rng.integers(1, 4)):
                wrong[rng.integers(0, min(300, len(wrong)))] ^= 1 << int(rng.integers(0, 8))
            (folder / f"flip_{number}.{ending}").write_bytes(bytes(wrong))


def numbers(folder: Path, rng: np.random.Generator) -> None:
    """Numbers that no camera gives."""
    picture = spots()
    real = picture.astype(np.float32)
    one_nan, one_inf = real.copy(), real.copy()
    one_nan[3, 4], one_inf[3, 4] = np.nan, np.inf
    made = {
        "nan": one_nan,
        "all_nan": np.full_like(real, np.nan),
        "inf": one_inf,
        "below": real - 500,
        "complex": real.astype(np.complex64),
        "bool": picture > 90,
        "int8": (picture.astype(int) - 128).astype(np.int8),
        "half": real.astype(np.float16),
        "huge": real.astype(np.float64) * 1e306,
        "tiny": real.astype(np.float64) * 1e-310,
        "uint64": picture.astype(np.uint64) << np.uint64(54),
        "offset": picture.astype(np.uint64) + np.uint64(2**60),
        "constant": np.full_like(picture, 9),
        "pixel": picture[:1, :1],
        "line": picture[:1],
        "column": picture[:, :1],
        "strip": np.zeros((2, 4000), np.uint8),
        "stack": np.zeros((5, 24, 24), np.uint8),
        "six": np.zeros((2, 2, 2, 2, 9, 9), np.uint8),
    }
    for name, pixels in made.items():
        tifffile.imwrite(folder / f"n_{name}.tif", pixels, photometric="minisblack")
    colours = np.stack([picture] * 4, -1)
    Picture.fromarray(colours).save(folder / "n_rgba.png")
    Picture.fromarray(picture > 90).save(folder / "n_bits.png")
    Picture.fromarray(picture).convert("P").save(folder / "n_palette.png")
    Picture.fromarray(colours[..., :3]).convert("CMYK").save(folder / "n_cmyk.jpg")
    Picture.fromarray(picture).save(
        folder / "n_moving.png", save_all=True, append_images=[Picture.fromarray(picture.T)]
    )


def _tiff(width: int, height: int, content: bytes, onward: int = 0, rows: int | None = None) -> bytes:
    """A TIFF file of one strip that says what it likes of itself."""
    at = 8 + 2 + 12 * 9 + 4
    entries = [
        (256, width),
        (257, height),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, at),
        (277, 1),
        (278, rows or height),
        (279, len(content)),
    ]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, 9) + directory + struct.pack("<I", onward) + content


def _png(width: int, height: int, content: bytes, extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    text = chunk(b"zTXt", b"c\0\0" + extra) if extra else b""
    return b"\x89PNG\r\n\x1a\n" + head + text + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def _ome(planes: str = "<TiffData/>", **sizes) -> str:
    said = {"SizeX": 96, "SizeY": 96, "SizeC": 1, "SizeZ": 1, "SizeT": 1} | sizes
    listed = " ".join(f'{key}="{value}"' for key, value in said.items())
    return (
        f'<?xml version="1.0"?><OME xmlns="{OME}"><Image ID="Image:0"><Pixels ID="P:0" DimensionOrder="XYCZT" Type="uint8" '
        f'{listed}><Channel ID="C:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>'
    )


def declared(folder: Path, rng: np.random.Generator) -> None:
    """Files that say of themselves what is not so: sizes beyond the memory, circles, texts that grow."""
    picture = spots()
    raw = picture.tobytes()
    made = {
        "circle": _tiff(96, 96, raw, onward=8),
        "wide": _tiff(60_000, 60_000, raw),
        "wider": _tiff(2**32 - 9, 2**32 - 9, raw),
        "nothing": _tiff(0, 0, raw),
        "rows": _tiff(96, 96, raw, rows=1),
    }
    for name, content in made.items():
        (folder / f"d_{name}.tif").write_bytes(content)
    (folder / "d_wide.png").write_bytes(_png(60_000, 60_000, bytes(90)))
    (folder / "d_wider.png").write_bytes(_png(2**31 - 1, 2**31 - 1, bytes(90)))
    (folder / "d_nothing.png").write_bytes(_png(0, 5, b""))
    lines = b"".join(b"\0" + row.tobytes() for row in picture)
    (folder / "d_text.png").write_bytes(_png(96, 96, lines, zlib.compress(bytes(100_000_000), 9)))
    entities = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 12}">' for n in range(8))
    grown = f'<!DOCTYPE x [<!ENTITY e0 "cell">{entities}]>'
    texts = {
        "planes": _ome(SizeT=2_000_000_000),
        "edge": _ome(SizeX=70_000, SizeY=70_000),
        "below": _ome(SizeZ=-2),
        "word": _ome(SizeZ="many"),
        "pixel": _ome(PhysicalSizeX="wide", PhysicalSizeY="0.5"),
        "nan": _ome(PhysicalSizeX="nan", PhysicalSizeY="0.5"),
        "elsewhere": _ome('<TiffData IFD="0"><UUID FileName="../../../etc/hostname">urn:uuid:1</UUID></TiffData>'),
        "page": _ome('<TiffData IFD="77" PlaneCount="9"/>'),
        "grows": _ome().replace("?>", f"?>{grown}", 1).replace("Image:0", "&e8;"),
        "broken": _ome()[:-20],
    }
    for name, text in texts.items():
        tifffile.imwrite(folder / f"d_{name}.ome.tif", picture, description=text, metadata=None)
    tifffile.imwrite(folder / "d_long.tif", picture, description="A" * 20_000_000, metadata=None)
    text = "ImageJ=1.54\nimages=900000000\nslices=900000000\nunit=micron\nspacing=far\n"
    tifffile.imwrite(folder / "d_imagej.tif", picture, description=text, metadata=None)


def structure(folder: Path, rng: np.random.Generator) -> None:
    """Folders with the names of files, links to nowhere, pipes, and other contents than the name says."""
    for name, text in {
        "s_plain": None,
        "s_empty": None,
        "s_half": "{",
        "s_none": '{"zarr_format":3,"node_type":"group","attributes":{}}',
    }.items():
        path = folder / f"{name}.{'tif' if name == 's_plain' else 'zarr'}"
        path.mkdir()
        if text is not None:
            (path / "zarr.json").write_text(text)
    outside = {"version": "0.5", "multiscales": [{"axes": [], "datasets": [{"path": "../../.."}]}]}
    for name, said in (("s_outside", outside), ("s_nothing", {"version": "0.5", "multiscales": []})):
        (folder / f"{name}.zarr").mkdir()
        text = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {"ome": said}})
        (folder / f"{name}.zarr" / "zarr.json").write_text(text)
    os.mkfifo(folder / "s_pipe.tif")
    os.symlink("s_b.tif", folder / "s_a.tif")
    os.symlink("s_a.tif", folder / "s_b.tif")
    os.symlink("nowhere.tif", folder / "s_dangling.tif")
    os.symlink("/etc/hostname", folder / "s_text.tif")
    for ending in ("tif", "png", "jpg"):
        (folder / f"s_words.{ending}").write_text("no picture")
    made = samples()
    (folder / "s_is_png.tif").write_bytes(made["png"])
    (folder / "s_is_tif.png").write_bytes(made["tif"])
    (folder / "s_is_jpg.png").write_bytes(made["jpg"])
    (folder / "s_unreadable.tif").write_bytes(made["tif"])
    (folder / "s_unreadable.tif").chmod(0)


def names(folder: Path, rng: np.random.Generator) -> None:
    """Good pictures with names that programs stumble over."""
    content = samples()["tif"]
    odd = [
        "=1+1",
        "<b>bold<∕b>",
        "a\nline",
        "ü 細胞 🔬",
        "-out",
        ".",
        "n" * 235,
        "x,y;z",
        "'\"`$HOME",
        "NA",
        "007",
        "con",
    ]
    for name in odd:
        (folder / f"{name}.tif").write_bytes(content)
    (folder / os.fsdecode(b"Pr\xe4parat.tif")).write_bytes(content)


KINDS = {
    "cut off": cut_off,
    "bits flipped": flipped,
    "strange numbers": numbers,
    "untrue declarations": declared,
    "no files": structure,
    "strange names": names,
}
