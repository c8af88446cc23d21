"""A small ND2 file, version 3, for tests: chunks, their map at the end, and metadata as typed lists of names and values."""

import struct
from pathlib import Path

import numpy as np

MAGIC = 0x0ABECEDA
DATA_AT = 24 + 4072  # where the pixels of a frame lie in its chunk
BOOL, UINT32, DOUBLE, TEXT, LEVEL = 1, 3, 6, 8, 11


def _value(value) -> tuple[int, bytes]:
    """Type and bytes of a plain value."""
    if isinstance(value, bool):
        return BOOL, struct.pack("B", value)
    if isinstance(value, int):
        return UINT32, struct.pack("I", value)
    if isinstance(value, float):
        return DOUBLE, struct.pack("d", value)
    return TEXT, f"{value}\0".encode("utf-16-le")


def _listed(name: str, value) -> bytes:
    """One name with its value; a dictionary is a level of its own."""
    encoded = f"{name}\0".encode("utf-16-le")
    if not isinstance(value, dict):
        kind, content = _value(value)
        return struct.pack("BB", kind, len(encoded) // 2) + encoded + content
    inside = [_listed(*item) for item in value.items()]
    head = struct.pack("BB", LEVEL, len(encoded) // 2) + encoded
    length = len(head) + 12 + sum(map(len, inside))
    places = np.cumsum([len(head) + 12, *map(len, inside)])[:-1]
    return head + struct.pack("<IQ", len(inside), length) + b"".join(inside) + struct.pack(f"<{len(places)}Q", *places)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack("IIQ", MAGIC, len(name), len(content)) + name + content


def _metadata(pixels, pixel_size_um, channels) -> dict[bytes, dict]:
    n_z, n_channels, height, width = pixels.shape
    bits, pitch = 8 * pixels.itemsize, width * n_channels * pixels.itemsize
    planes = {
        f"Plane{n}": {
            "uiCompCount": 1,
            "uiSampleIndex": n,
            "sDescription": name,
            "uiColor": 0xFFFFFF,
            "pFluorescentProbe": {"m_sName": name},
        }
        for n, name in enumerate(channels)
    }
    attributes = {
        "uiWidth": width,
        "uiWidthBytes": pitch,
        "uiHeight": height,
        "uiComp": n_channels,
        "uiBpcInMemory": bits,
        "uiBpcSignificant": bits,
        "uiSequenceCount": n_z,
        "eCompression": 2,
        "uiTileWidth": width,
        "uiTileHeight": height,
    }
    picture = {
        "bCalibrated": True,
        "dCalibration": float(pixel_size_um[1]),
        "dZStep": float(pixel_size_um[0]),
        "sPicturePlanes": {"uiCount": n_channels, "sPlaneNew": planes},
    }
    step = float(pixel_size_um[0])
    loop = {
        "uiCount": n_z,
        "dZLow": 0.0,
        "dZHigh": step * (n_z - 1),
        "dZStep": step,
        "dZHome": 0.0,
        "bZInverted": False,
    }
    return {
        b"ImageAttributesLV!": {"SLxImageAttributes": attributes},
        b"ImageMetadataSeqLV|0!": {"SLxPictureMetadata": picture},
        b"ImageMetadataLV!": {"SLxExperiment": {"eType": 4, "uLoopPars": loop}},
    }


def write_nd2(
    path: Path,  # .nd2
    pixels: np.ndarray,  # uint8 or uint16; (Z, C, Y, X)
    pixel_size_um: tuple[float, float, float] = (0.5, 0.2, 0.2),  # (z, y, x); µm
    channels: tuple[str, ...] = ("membranes", "nuclei"),
) -> Path:
    """Write a stack as a microscope of Nikon does: a chunk per plane in depth, its channels pixel by pixel."""
    data = bytearray(_chunk(b"ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver3.0".ljust(64, b"\0")))
    places = {}

    def add(name: bytes, content: bytes, reserved: int = 0) -> None:
        places[name] = len(data), len(content)
        data.extend(_chunk(name.ljust(reserved, b"\0"), content))

    for name, values in _metadata(pixels, pixel_size_um, channels).items():
        add(name, b"".join(_listed(*item) for item in values.items()))
    for number, plane in enumerate(pixels):
        frame = np.ascontiguousarray(np.moveaxis(plane, 0, -1)).tobytes()
        add(f"ImageDataSeq|{number}!".encode(), struct.pack("d", float(number)) + frame, DATA_AT - 24)
    listed = b"".join(name + struct.pack("QQ", *place) for name, place in places.items())
    start = len(data)
    listed += b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("Q", start)
    data.extend(_chunk(b"ND2 FILEMAP SIGNATURE NAME 0001!", listed))
    path.write_bytes(data)
    return path
