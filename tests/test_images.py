"""Image reading: every kind of picture comes out right, every kind of damage ends in a named error."""

from __future__ import annotations

import io
import os
import pickle
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from mlabel._checks import DataError
from mlabel.data.images import FORMATS, ImageError, MissingImageError, read_image

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """Return a picture (H, W, 3) without sharp edges, so that lossy formats keep it nearly as it is."""
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [rows * 255 / height, columns * 255 / width, (rows + columns) * 255 / (height + width)]
    return np.stack(planes, axis=2).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """Return the bytes of a file of format `kind` that holds `image`."""
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def reason_of(source: object) -> str:
    """Return the reason for which `source` is refused."""
    with pytest.raises(ImageError) as caught:
        read_image(source)
    return caught.value.reason


# Pictures come out as they are.


@given(
    pixels=st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed)),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    kind=st.sampled_from(["PNG", "BMP", "TIFF", "WEBP"]),
)
@settings(max_examples=40, deadline=None)
def test_lossless_formats_return_the_very_pixels(pixels, height, width, kind):
    picture = pixels.integers(0, 256, (height, width, 3), dtype=np.uint8)
    options = {"lossless": True} if kind == "WEBP" else {}
    result = read_image(encoded(picture, kind, **options))
    assert result.dtype == np.uint8
    assert result.flags.writeable
    np.testing.assert_array_equal(result, picture)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.fault(4)
def test_every_format_is_read_by_content_from_path_bytes_and_file(tmp_path, kind):
    picture = smooth(40, 60)
    path = tmp_path / "named.jpg"  # wrong for all formats but one
    path.write_bytes(encoded(picture, kind))
    result = read_image(path)
    assert result.shape == (40, 60, 3)
    assert np.abs(result.astype(int) - picture).mean() < (40 if kind == "GIF" else 4)
    np.testing.assert_array_equal(read_image(str(path)), result)
    np.testing.assert_array_equal(read_image(path.read_bytes()), result)
    with path.open("rb") as file:
        file.seek(7)
        np.testing.assert_array_equal(read_image(file), result)
        assert not file.closed


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("channels", [1, 3])
def test_size_is_exact_and_channels_are_as_asked(kind, channels):
    result = read_image(encoded(smooth(90, 70), kind), size=(20, 33), channels=channels)
    assert result.shape == (20, 33, channels)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1)])
@pytest.mark.fault(6)
def test_thin_pictures_are_accepted(shape):
    picture = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_image(encoded(picture)), picture)
    assert read_image(encoded(picture, "JPEG"), size=(32, 32)).shape == (32, 32, 3)


@given(height=st.integers(1, 60), width=st.integers(1, 60), target=st.tuples(st.integers(1, 40), st.integers(1, 40)))
@settings(max_examples=40, deadline=None)
def test_resizing_agrees_with_pillow_to_one_level(height, width, target):
    picture = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(picture).resize(target[::-1], Image.Resampling.BILINEAR))
    assert np.abs(read_image(encoded(picture), size=target).astype(int) - expected).max() <= 1
    assert (read_image(encoded(np.full_like(picture, 255)), size=target) == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_scaled_jpeg_decoding_looks_like_full_decoding_resized(channels):
    data = encoded(smooth(512, 480), "JPEG", quality=95)
    full = Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB")
    expected = np.asarray(full.resize((200, 224), Image.Resampling.BILINEAR)).reshape(224, 200, channels)
    result = read_image(data, size=(224, 200), channels=channels)
    assert np.abs(result.astype(int) - expected).max() <= 4


def test_jpeg_is_decoded_small_only_when_the_target_is_at_most_half(monkeypatch):
    decoded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(self.size) or load(self))
    data = encoded(smooth(100, 80), "JPEG")
    for size in [(51, 40), (50, 40), (25, 20), (60, 20), (200, 200)]:
        decoded.clear()
        read_image(data, size=size)
        assert decoded[0] == {(51, 40): (80, 100), (50, 40): (40, 50), (25, 20): (20, 25)}.get(size, (80, 100))


def test_grey_is_the_luma_of_the_colours():
    expected = np.asarray(Image.fromarray(NOISE).convert("L"))
    np.testing.assert_array_equal(read_image(encoded(NOISE), channels=1)[:, :, 0], expected)


# Modes.


@pytest.mark.fault(9)
def test_modes_without_transparency_become_rgb():
    grey = NOISE[:, :, 0]
    np.testing.assert_array_equal(read_image(encoded(grey)), np.repeat(grey[:, :, None], 3, axis=2))
    one_bit = Image.fromarray(grey).convert("1")
    result = read_image(encoded(one_bit))
    np.testing.assert_array_equal(result[:, :, 2] == 255, np.asarray(one_bit))
    palette = Image.fromarray(NOISE).quantize(16)
    np.testing.assert_array_equal(read_image(encoded(palette)), np.asarray(palette.convert("RGB")))


@pytest.mark.fault(9)
def test_cmyk_jpeg_keeps_its_colours():
    colour = Image.new("RGB", (16, 16), (200, 40, 90))
    result = read_image(encoded(colour.convert("CMYK"), "JPEG", quality=95))
    assert np.abs(result.astype(int) - [200, 40, 90]).max() < 6


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
@pytest.mark.fault(9)
def test_black_on_transparent_shows_the_background(mode):
    icon = Image.new(mode, (4, 3), 0)
    data = encoded(icon, "TIFF" if mode == "PA" else "PNG")
    assert Image.open(io.BytesIO(data)).mode == mode
    assert (read_image(data) == 255).all()
    assert (read_image(data, background=(10, 20, 30)) == [10, 20, 30]).all()
    assert (read_image(data, background=(7, 7, 7), channels=1) == 7).all()


@pytest.mark.fault(9)
def test_half_transparent_is_mixed_by_its_alpha():
    data = encoded(Image.new("RGBA", (2, 2), (200, 100, 0, 51)))  # a fifth
    assert (read_image(data, background=(100, 100, 100)) == [120, 100, 80]).all()


@pytest.mark.fault(9)
def test_transparent_palette_entry_and_transparent_colour_show_the_background():
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.putdata([0, 1])
    for kind in ("PNG", "GIF"):
        result = read_image(encoded(palette, kind, transparency=0))
        np.testing.assert_array_equal(result, [[[255, 255, 255], [9, 8, 7]]])
    colours = np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)
    result = read_image(encoded(colours, transparency=(1, 2, 3)))
    np.testing.assert_array_equal(result, [[[255, 255, 255], [4, 5, 6]]])
    result = read_image(encoded(colours[:, :, 0], transparency=1), channels=1)
    np.testing.assert_array_equal(result, [[[255], [4]]])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.fault(8)
def test_sixteen_bit_grey_is_scaled_by_its_range(kind):
    values = np.array([[0, 128, 129, 257, 25700, 65278, 65407, 65535]], dtype=np.uint16)
    result = read_image(encoded(values, kind), channels=1)
    np.testing.assert_array_equal(result[0, :, 0], np.rint(values[0] / 257))
    assert read_image(encoded(values, kind)).shape == (1, 8, 3)


def tiff16(values: np.ndarray, bits: int, photometric: int) -> bytes:
    """Return a plain TIFF of one strip of grey samples of 16 bits, of which the tags say `bits` and `photometric`."""
    height, width = values.shape
    strip = values.astype("<u2").tobytes()
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    entries += [(278, height), (279, len(strip))]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory + b"\0\0\0\0"


@pytest.mark.fault(8)
def test_white_is_zero_in_a_tiff_of_16_bits():
    values = np.array([[0, 65535, 257]], dtype=np.uint16)
    np.testing.assert_array_equal(read_image(tiff16(values, 16, 1), channels=1)[0, :, 0], [0, 255, 1])
    np.testing.assert_array_equal(read_image(tiff16(values, 16, 0), channels=1)[0, :, 0], [255, 0, 254])


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.fault(8)
def test_pixels_of_unknown_range_are_refused_with_a_hint(dtype):
    with pytest.raises(ImageError, match="range is not known; save it as 8 or 16 bits") as caught:
        read_image(encoded(np.full((2, 2), 7, dtype=dtype), "TIFF"))
    assert caught.value.reason == "depth"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
@pytest.mark.fault(10)
def test_of_an_animation_the_first_frame_is_read(kind):
    frames = [Image.new("RGB", (8, 6), colour) for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255)]]
    options = {"lossless": True} if kind == "WEBP" else {}
    result = read_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert (result == [255, 0, 0]).all()


# Orientation.


def with_orientation(picture: np.ndarray, value: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x112] = value
    return encoded(picture, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


# Where the pixel (row, column) of the upright picture lies in the stored one, as EXIF defines the eight values.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.fault(7)
def test_orientation_is_applied_once(kind, value):
    picture = smooth(24, 40)
    expected = UPRIGHT[value](picture)
    data = with_orientation(picture, value, kind)
    result = read_image(data)
    assert result.shape == expected.shape
    assert np.abs(result.astype(int) - expected).max() <= (0 if kind != "JPEG" else 12)
    # The size is that of the upright picture, and what is at the top stays there; JPEG is scaled while decoding.
    small = read_image(data, size=(10, 6))
    assert small.shape == (10, 6, 3)
    reference = np.asarray(Image.fromarray(np.ascontiguousarray(expected)).resize((6, 10), Image.Resampling.BILINEAR))
    assert np.abs(small.astype(int) - reference).max() <= 16


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.fault(7)
def test_damaged_exif_is_passed_over_and_noted(kind):
    notes: list[str] = []
    data = encoded(smooth(8, 8), kind, exif=b"Exif\0\0nonsense that is no TIFF header")
    assert read_image(data, notes=notes).shape == (8, 8, 3)
    assert len(notes) == 1
    assert "EXIF" in notes[0]


def test_orientation_out_of_range_is_noted_and_zero_is_not():
    for value, count in [(0, 0), (1, 0), (9, 1), (255, 1)]:
        notes: list[str] = []
        read_image(with_orientation(NOISE, value, "PNG"), notes=notes)
        assert len(notes) == count


# Damage and other things that are no pictures.


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.fault(1)
@pytest.mark.fault(2)
def test_truncated_files_are_refused(kind, share):
    options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
    data = encoded(NOISE, kind, **options)
    assert reason_of(data[: int(len(data) * share)]) in ("truncated", "corrupt")


@pytest.mark.fault(1)
def test_jpeg_without_its_end_is_truncated_also_when_decoded_small():
    data = encoded(smooth(64, 64), "JPEG")[:-2]
    for size in (None, (16, 16)):
        with pytest.raises(ImageError, match="truncated") as caught:
            read_image(data, size=size)
        assert caught.value.reason == "truncated"


@pytest.mark.fault(2)
def test_a_flipped_byte_in_a_png_is_refused():
    data = bytearray(encoded(NOISE))
    start = data.index(b"IDAT") + 4
    for place in range(start + 2, len(data) - 30, 97):
        damaged = bytearray(data)
        damaged[place] ^= 0x55
        assert reason_of(bytes(damaged)) in ("corrupt", "truncated")


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "missing"),
        (lambda path: path.touch(), "empty"),
        (lambda path: path.mkdir(), "directory"),
        (make_fifo, "special"),
        (lambda path: path.write_text("<!DOCTYPE html><html><body>404"), "not_an_image"),
        (lambda path: path.write_bytes(b"just some text"), "not_an_image"),
        (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "format"),
        (lambda path: path.write_bytes(b"8BPS\0\1" + bytes(60)), "format"),
        (lambda path: path.write_bytes(b"\0\0\0 ftypavif" + bytes(40)), "format"),
        (lambda path: path.write_bytes(b"\xff\xd8\xff"), "corrupt"),
        (lambda path: path.write_bytes(b"RIFF\x10\0\0\0WEBPnope"), "corrupt"),
    ],
)
@pytest.mark.fault(3)
@pytest.mark.fault(4)
def test_each_fault_has_its_reason_and_the_message_names_the_path(tmp_path, make, reason):
    path = tmp_path / "a.jpg"
    make(path)
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert caught.value.reason == reason
    assert str(path) in str(caught.value)


@pytest.mark.fault(3)
def test_missing_is_also_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png")
    (tmp_path / "file").touch()
    assert reason_of(tmp_path / "file" / "a.png") == "missing"
    assert reason_of(b"") == "empty"
    assert reason_of("a\0b.png") == "unreadable"
    assert reason_of("a" * 5000) == "unreadable"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="permissions of this kind are POSIX only")
@pytest.mark.fault(3)
def test_no_permission(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(NOISE))
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # the superuser may read everything
        assert reason_of(path) == "permission"
    finally:
        os.seteuid(user)


def bomb(side: int) -> bytes:
    """Return a small PNG of `side` x `side` one-bit pixels, all black."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.fault(5)
def test_decompression_bombs_are_refused_from_the_header():
    limit = Image.MAX_IMAGE_PIXELS
    data = bomb(15_000)
    assert len(data) < 60_000
    assert reason_of(data) == "too_large"  # beyond Pillow's limit
    # Between the size at which Pillow warns and that at which it refuses: no warning leaves, our limit holds.
    with pytest.raises(ImageError, match="12000 x 12000 pixels; max_pixels is 100,000,000"):
        read_image(bomb(12_000))
    with pytest.raises(ImageError, match="max_pixels is 767"):
        read_image(encoded(NOISE), max_pixels=767)
    assert read_image(encoded(NOISE), max_pixels=768).shape == NOISE.shape
    assert limit == Image.MAX_IMAGE_PIXELS


# Warnings, threads, errors that travel.


def test_warnings_of_pillow_are_notes_and_filters_stay_as_they_were():
    before = list(warnings.filters), warnings.showwarning
    notes: list[str] = []
    # A tag whose values lie beyond the end of the file: Pillow warns and goes on.
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0e\x01\x02\0\xff\0\0\0\xff\xff\0\0\0\0\0\0"
    read_image(encoded(NOISE, "JPEG", exif=exif), notes=notes)
    assert notes
    assert all("tag 270" in note.lower() for note in notes)
    assert (list(warnings.filters), warnings.showwarning) == before


def test_threads_do_not_disturb_each_other_nor_the_filters():
    before = list(warnings.filters), warnings.showwarning
    data, results = encoded(NOISE), []
    odd = encoded(NOISE, exif=b"Exif\0\0nonsense")

    def work(number: int) -> None:
        for _ in range(30):
            notes: list[str] = []
            read_image(odd if number % 2 else data, notes=notes)
            results.append(len(notes) == number % 2)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 120
    assert all(results)
    assert (list(warnings.filters), warnings.showwarning) == before


@pytest.mark.parametrize("error", [ImageError("a.jpg: damaged", "corrupt"), MissingImageError("b.jpg: no such file")])
def test_errors_survive_pickling(error):
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  our own bytes
    assert (type(again), str(again), again.reason) == (type(error), str(error), error.reason)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, "channels must be 1"),
        ({"background": (0, 0)}, "background must be red, green and blue"),
        ({"background": (0, 0, 256)}, "background must be"),
        ({"max_pixels": 0}, "max_pixels must be"),
        ({"size": (0, 4)}, "size must be height and width"),
        ({"size": (4,)}, "size must be height and width"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        read_image(encoded(NOISE), **options)
    with pytest.raises(TypeError, match="source must be a path"):
        read_image(NOISE)


def seeds() -> list[bytes]:
    """Return small valid files in many forms, for damaging."""
    picture = smooth(20, 30)
    rgba = Image.fromarray(np.dstack([picture, picture[:, :, 0]]))
    return [
        encoded(picture, "JPEG"),
        encoded(picture, "JPEG", progressive=True),
        encoded(picture),
        encoded(rgba),
        encoded(Image.fromarray(picture).quantize(8), transparency=0),
        encoded(picture[:, :, 0].astype(np.uint16) * 200),
        encoded(picture, "GIF"),
        encoded(rgba, "WEBP"),
        encoded(picture, "WEBP", lossless=True),
        encoded(picture, "BMP"),
        encoded(picture, "TIFF"),
        encoded(picture, "TIFF", compression="tiff_lzw"),
        encoded(rgba, "TIFF", compression="tiff_adobe_deflate"),
        with_orientation(picture, 6, "JPEG"),
    ]


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Return `data` cut, with flipped bytes, or with a piece of it overwritten; headers are hit more often."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        reach = len(changed) if rng.random() < 0.5 else min(len(changed), 200)
        changed[int(rng.integers(reach))] = int(rng.integers(256))
    if rng.random() < 0.3:
        del changed[int(rng.integers(1, len(changed))) :]
    return bytes(changed)


@pytest.mark.fault(1)
@pytest.mark.fault(2)
def test_damaged_files_give_an_array_or_an_image_error():
    rng, files = np.random.default_rng(1), seeds()
    outcomes = {"read": 0, "refused": 0}
    for number in range(300):
        try:
            # The limit keeps a damaged header from asking for gigabytes.
            size = (16, 16) if number % 2 else None
            result = read_image(damaged(files[number % len(files)], rng), size=size, max_pixels=1_000_000)
        except ImageError:
            outcomes["refused"] += 1
        else:
            assert result.dtype == np.uint8
            assert result.shape[2] == 3
            outcomes["read"] += 1
    assert min(outcomes.values()) > 30
