"""Encoded images, decoded on demand."""

from __future__ import annotations

import io
import logging
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import dhtdata
from dhtdata.errors import ConfigError, FormatError
from dhtdata.gather.pictures import decode_picture
from dhtdata.store import Store
from dhtdata.torch import DataLoader
from tests.mount.making import put_dataset

ROWS = 60
BAD = (7, 8, 33)
"""Rows of column ``broken`` that no decoder takes; 32 to 34 are of another size."""


def pixels(row: int, height: int = 6, width: int = 9) -> NDArray[np.uint8]:
    return np.random.Generator(np.random.Philox(row)).integers(0, 256, (height, width, 3)).astype(np.uint8)


def encoded(array: NDArray[Any], format: str = "PNG", mode: str | None = None, **options: Any) -> bytes:
    image = Image.fromarray(array)
    written = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(written, format, **options)
    return written.getvalue()


def sized(row: int) -> NDArray[np.uint8]:
    return pixels(row, 5, 5) if row in (32, 33, 34) else pixels(row)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def made(home: Path) -> str:
    pngs = [encoded(pixels(row)) for row in range(ROWS)]
    mixed = [encoded(sized(row)) for row in range(ROWS)]
    hugging = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    broken = [b"no picture" if row in BAD else png for row, png in enumerate(mixed)]
    table = pa.table(
        {
            "number": pa.array(range(ROWS), pa.int64()),
            "image": pa.array([{"bytes": png, "path": f"{row}.png"} for row, png in enumerate(pngs)], hugging),
            "mixed": pa.array(mixed, pa.large_binary()),
            "broken": pa.array(broken, pa.binary()),
            "sparse": pa.array([None if row % 5 == 0 else png for row, png in enumerate(pngs)], pa.binary_view()),
            "elsewhere": pa.array([{"bytes": None, "path": "/home/me/1.png"}] * ROWS, hugging),
            "label": [f"label {row}" for row in range(ROWS)],
        }
    )
    with Store.open(home / "store") as store:
        return str(put_dataset(store, table, groups=[["number", "label"], table.column_names[1:-1]]))


Mounted = Callable[..., dhtdata.StreamingDataset]


@pytest.fixture
def mounted(made: str, home: Path) -> Mounted:
    def mount(*columns: str, **options: Any) -> dhtdata.StreamingDataset:
        return dhtdata.mount(
            made,
            home=home,
            columns=["number", *columns],
            **{"batch_size": 8, "shuffle": True, "decode": True, **options},
        )

    return mount


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("format", ["numpy", "torch"])
def test_pictures_of_one_size_are_one_array(mounted: Mounted, format: str, threads: int) -> None:
    for batch in mounted("image", "label", format=format, threads=threads, decode={"image": "image"}):
        numbers = batch["number"].tolist()
        assert isinstance(batch["image"], torch.Tensor if format == "torch" else np.ndarray)
        assert np.array_equal(np.asarray(batch["image"]), np.stack([pixels(row) for row in numbers]))
        assert list(batch["label"]) == [f"label {row}" for row in numbers]
        assert list(batch) == ["number", "image", "label"]
        batch["image"] += 1  # writable


@pytest.mark.parametrize("format", ["numpy", "torch"])
def test_pictures_of_several_sizes_are_a_list_of_arrays(mounted: Mounted, format: str) -> None:
    for batch in mounted("mixed", format=format, shuffle=False):
        numbers = batch["number"].tolist()
        assert all(np.array_equal(one, sized(row)) for one, row in zip(batch["mixed"], numbers, strict=True))
        if 32 in numbers:
            assert isinstance(batch["mixed"], list) if format == "torch" else batch["mixed"].dtype == object
            batch["mixed"][0] += 1
        else:
            assert batch["mixed"].shape == (len(numbers), 6, 9, 3)


@pytest.mark.parametrize("format", ["numpy", "torch"])
def test_a_null_stays_none(mounted: Mounted, format: str) -> None:
    for batch in mounted("sparse", format=format):
        for row, picture in zip(batch["number"].tolist(), batch["sparse"], strict=True):
            assert picture is None if row % 5 == 0 else np.array_equal(picture, pixels(row))


@pytest.mark.parametrize("format", ["numpy", "torch"])
def test_single_rows_are_decoded_too(mounted: Mounted, format: str) -> None:
    dataset = mounted("image", format=format, batch_size=None)
    for row in dataset:
        assert np.array_equal(row["image"], pixels(int(row["number"])))
    view = dataset.map_style()
    assert np.array_equal(view[3]["image"], pixels(3))
    assert np.array_equal(view[2:4]["image"], np.stack([pixels(2), pixels(3)]))


def test_a_transform_gets_what_was_decoded(mounted: Mounted) -> None:
    def brightness(row: dict[str, Any]) -> dict[str, Any]:
        return {"number": row["number"], "mean": row["mixed"].mean()}

    for batch in mounted("mixed", transform=brightness, transform_on="sample"):
        assert batch["mean"].tolist() == [sized(row).mean() for row in batch["number"].tolist()]
    for batch in mounted("image", transform=lambda batch: {"mean": batch["image"].mean(axis=(1, 2, 3))}):
        assert batch["mean"].shape == (len(batch["mean"]),)


@pytest.mark.timeout(90)
@pytest.mark.slow_e2e
@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.parametrize("batch_size", [4, None])
def test_workers_decode_and_leave_out_what_is_broken(mounted: Mounted, context: str, batch_size: int | None) -> None:
    dataset = mounted("broken", "sparse", batch_size=batch_size, format="torch", on_error="skip")
    seen = []
    for item in DataLoader(dataset, num_workers=2, multiprocessing_context=context):
        numbers = np.atleast_1d(np.asarray(item["number"])).tolist()
        seen += numbers
        pictures = item["broken"] if batch_size else [item["broken"]]
        assert all(np.array_equal(one, sized(row)) for one, row in zip(pictures, numbers, strict=True))
    assert sorted(seen) == [row for row in range(ROWS) if row not in BAD]
    assert dataset.state_dict()["epoch"] == 1


@pytest.mark.parametrize("batch_size", [None, 1, 2, 8, 60])
@pytest.mark.parametrize("format", ["numpy", "torch"])
def test_rows_that_do_not_decode_are_left_out_and_named(
    mounted: Mounted, format: str, batch_size: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = mounted("broken", batch_size=batch_size, format=format, on_error="skip", shuffle=False)
    with caplog.at_level(logging.WARNING, "dhtdata"):
        items = list(dataset)
    assert sum((np.atleast_1d(np.asarray(item["number"])).tolist() for item in items), []) == [
        row for row in range(ROWS) if row not in BAD
    ]
    for item in items:
        pictures = [item["broken"]] if batch_size is None else item["broken"]
        for row, one in zip(np.atleast_1d(np.asarray(item["number"])).tolist(), pictures, strict=True):
            assert np.array_equal(one, sized(row))
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == len(BAD)
    assert all(
        f"column 'broken' of row {row} of split 'train' is no picture" in text
        for row, text in zip(BAD, told, strict=True)
    )
    untouched = mounted("broken", batch_size=batch_size, decode=None, shuffle=False)
    assert dataset.state_dict() == untouched.state_dict() | {"epoch": 1}


@pytest.mark.parametrize("sample", [False, True])
def test_others_stand_in_where_ranks_must_keep_step(mounted: Mounted, sample: bool) -> None:
    options: dict[str, Any] = {"transform": dict, "transform_on": "sample"} if sample else {}
    ranks = [
        list(mounted("broken", on_error="skip", shuffle=False, rank=rank, world_size=2, **options)) for rank in range(2)
    ]
    assert [len(steps) for steps in ranks] == [4, 4]
    seen = []
    for batch in sum(ranks, []):
        assert len(batch["number"]) == len(batch["broken"]) == len(batch["_valid"]) == 8
        for row, one in zip(batch["number"].tolist(), batch["broken"], strict=True):
            assert row not in BAD and np.array_equal(one, sized(row))
        seen += batch["number"][batch["_valid"]].tolist()
    assert sorted(seen) == [row for row in range(ROWS) if row not in BAD]


def test_a_batch_of_which_nothing_is_left_stops_ranks_that_must_keep_step(mounted: Mounted) -> None:
    with pytest.raises(ConfigError, match="no picture of a batch of 1 rows of split 'train' decodes"):
        list(mounted("broken", on_error="skip", batch_size=1, rank=0, world_size=2))
    with pytest.raises(ConfigError, match="unequal steps"):
        mounted("broken", on_error="skip", batch_size=None, rank=0, world_size=2)


def test_what_does_not_decode_is_named(mounted: Mounted) -> None:
    for dataset in (mounted("broken"), mounted("broken", batch_size=None)):
        with pytest.raises(FormatError, match=r"column 'broken' of row \d+ of split 'train' is no picture: 10 bytes"):
            list(dataset)
    with pytest.raises(FormatError, match="row 7 .*no picture of a known format.*on_error='skip'"):
        mounted("broken", on_error="skip").map_style()[7]
    with pytest.raises(FormatError, match="no bytes, only the path '/home/me/1.png'"):
        list(mounted("elsewhere", decode={"elsewhere": "image"}))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"decode": "video"}, "'video' is neither 'image' nor"),
        ({"decode": ("image", "CMYK")}, "a mode of RGB, L, RGBA, stored"),
        ({"decode": {"picture": "image"}}, "no column 'picture': the chosen ones are number, image, label"),
        ({"decode": {"label": "image"}}, "column 'label' of type string holds no encoded images"),
        ({"format": "arrow"}, "not 'arrow'"),
        ({"format": "python"}, "not 'python'"),
        ({"decode": {"image": "image"}, "collate": {"image": "padded"}}, "column 'image' of type struct"),
        ({"on_error": "skip", "decode": None}, "give transform or decode"),
    ],
)
def test_a_decode_that_does_not_fit_is_refused_by_name(mounted: Mounted, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        mounted("image", "label", **options)
    with pytest.raises(ConfigError, match="none holds images"):
        mounted("label")
    with pytest.raises(ConfigError, match="cannot both be decoded and be padded"):
        mounted("mixed", collate={"mixed": "padded"})


def test_without_pillow_the_extra_is_named(made: str, home: Path) -> None:
    script = f"""
import sys
sys.modules["PIL"] = None
import dhtdata
try:
    dhtdata.mount({made!r}, home={str(home)!r}, columns=["mixed"], decode=True)
except dhtdata.errors.ConfigError as failure:
    print(failure)
assert len(next(iter(dhtdata.mount({made!r}, home={str(home)!r}, columns=["mixed"])))["mixed"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert "decode needs Pillow" in done.stdout and "its extra images" in done.stdout


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "stored"])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_formats_and_modes_are_those_of_pillow(format: str, mode: str) -> None:
    source = encoded(pixels(1), format)
    with Image.open(io.BytesIO(source)) as image:
        expected = np.asarray(image if mode == "stored" else image.convert(mode))
    assert np.array_equal(decode_picture(source, mode), expected)


@pytest.mark.parametrize(
    ("kind", "shape"), [("L", (6, 9)), ("1", (6, 9)), ("P", (6, 9, 3)), ("RGBA", (6, 9, 4)), ("LA", (6, 9, 2))]
)
def test_rgb_is_rgb_whatever_the_file_holds(kind: str, shape: tuple[int, ...]) -> None:
    source = encoded(pixels(1), mode=kind)
    assert decode_picture(source, "RGB").shape == (6, 9, 3) and decode_picture(source, "RGB").dtype == np.uint8
    assert decode_picture(source, "L").shape == (6, 9)
    stored = decode_picture(source, "stored")
    assert stored.shape[:2] == shape[:2] and (stored.ndim == 2) == (kind in "L1P")


def test_a_transparent_palette_decodes_without_a_warning() -> None:
    image = Image.fromarray(pixels(1)).convert("P")
    written = io.BytesIO()
    image.save(written, "PNG", transparency=bytes(range(256)))
    assert decode_picture(written.getvalue(), "RGB").shape == (6, 9, 3)


def test_samples_of_16_bits_are_not_cut_off() -> None:
    deep = (np.arange(54, dtype=np.uint16) * 1_000).reshape(6, 9)
    source = encoded(deep)
    assert np.array_equal(decode_picture(source, "stored"), deep)
    for mode in ("RGB", "L"):
        with pytest.raises(FormatError, match="more than 8 bits .*stored"):
            decode_picture(source, mode)


def test_a_picture_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    source = encoded(pixels(1), "PNG", exif=exif)
    assert np.array_equal(decode_picture(source, "RGB"), np.rot90(pixels(1), -1))


def png_of_size(width: int, height: int) -> bytes:
    """A few bytes that claim to be so large."""

    def piece(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + piece(b"IHDR", header) + piece(b"IDAT", zlib.compress(bytes(64))) + piece(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 20_000, 2_000_000])
def test_a_bomb_is_refused_before_it_is_unpacked(side: int) -> None:
    with pytest.raises(FormatError, match="pixels"):
        decode_picture(png_of_size(side, side), "RGB")


def test_the_limit_on_pixels_is_pillows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode_picture(encoded(pixels(1)), "RGB").shape == (6, 9, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 53)
    with pytest.raises(FormatError, match="pixels"):
        decode_picture(encoded(pixels(1)), "RGB")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 54)
    assert decode_picture(encoded(pixels(1)), "RGB").shape == (6, 9, 3)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_truncated_files_are_errors_not_gray_rectangles(format: str) -> None:
    whole = encoded(pixels(1, 64, 64), format)
    for kept in (0, 1, 10, len(whole) // 3, len(whole) // 2, 3 * len(whole) // 4):
        with pytest.raises(FormatError):
            decode_picture(whole[:kept], "RGB")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_flipped_bits_give_a_picture_or_a_format_error(format: str) -> None:
    whole = encoded(pixels(1, 16, 16), format)
    draw = np.random.Generator(np.random.Philox(5))
    for _ in range(60):
        damaged = bytearray(whole)
        for at in draw.integers(0, len(whole), 3).tolist():
            damaged[at] ^= 1 << int(draw.integers(0, 8))
        try:
            assert decode_picture(bytes(damaged), "RGB").ndim == 3
        except FormatError:
            pass


def test_programs_are_never_run_on_a_picture() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with Image.open(io.BytesIO(postscript)) as image:
        assert image.format == "EPS"  # which Pillow gives to Ghostscript
    with pytest.raises(FormatError, match="known format"):
        decode_picture(postscript, "RGB")
