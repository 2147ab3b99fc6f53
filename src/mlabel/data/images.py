"""Image files to arrays: one function, for every kind of picture and every kind of damage.

What comes out is always uint8 (H, W, C). What cannot be read ends in an `ImageError` that names the file and the
reason; a damaged file is never repaired, guessed at or replaced.
"""

from __future__ import annotations

import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from PIL import (
    Image,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401  registers WEBP; Pillow would load all of its plugins to find it
)

from mlabel._checks import DataError, check_positive

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 100_000_000
WHITE = (255, 255, 255)

Source: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

# The address of a member of an uncompressed tar: the tar's path, where the bytes begin, and how many they are.
_MEMBER = re.compile(r"(.+\.tar)@([0-9]{1,18})\+([0-9]{1,18})", re.DOTALL)
MAX_MEMBER_BYTES = 1 << 30

# How files of the accepted formats begin, and how some of the refused ones do.
_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
_REFUSED = {
    b"%!PS": "EPS",
    b"8BPS": "PSD",
    b"%PDF": "PDF",
    b"\0\0\1\0": "ICO",
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL": "JPEG XL",
}

# EXIF tag 0x112 to what turns the picture upright (CIPA DC-008, 2019, section 4.6.4).
_ORIENTATION_TAG = 0x112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(DataError):
    """An image that cannot be read; the message names it, `reason` says why in one word.

    Args:
        message: What is wrong, and with which image.
        reason: The same in one word: missing, directory, special, permission, unreadable, empty, not_an_image, format,
            too_large, truncated, corrupt or depth.

    Example:
        >>> import io
        >>> try:
        ...     read_image(io.BytesIO(b"<html>"))
        ... except ImageError as error:
        ...     print(error.reason)
        not_an_image
    """

    # One argument, so that the error can be rebuilt in another process from its message.
    def __init__(self, message: str, reason: str = "unreadable") -> None:
        super().__init__(message)
        self.reason = reason


class MissingImageError(ImageError, FileNotFoundError):
    """An image file that is not there: an `ImageError` that `except FileNotFoundError` catches too.

    Args:
        message: What is wrong, and with which image.
        reason: The same in one word.

    Example:
        >>> try:
        ...     read_image("gone.png")
        ... except FileNotFoundError as error:
        ...     print(type(error).__name__)
        MissingImageError
    """

    def __init__(self, message: str, reason: str = "missing") -> None:
        super().__init__(message, reason)


def too_many_bad(count: int, total: int, *, max_bad: float, last: str) -> ImageError | None:
    """Return the error to raise where `count` of `total` images could not be read, or None while that is allowed.

    Args:
        count: Bad images so far.
        total: All images.
        max_bad: The share that may be bad.
        last: What was wrong with the last one.
    """
    if count <= max_bad * total:
        return None
    return ImageError(
        f"{count} of {total} images cannot be read, more than max_bad ({max_bad:.2%}); the last: {last}", "too_many"
    )


def read_image(
    source: Source,
    *,
    channels: int = 3,
    background: tuple[int, int, int] = WHITE,
    max_pixels: int = MAX_PIXELS,
    size: tuple[int, int] | None = None,
    notes: list[str] | None = None,
) -> np.ndarray:
    """Return the picture in `source` as a uint8 array (H, W, C), upright.

    The format is found by content, never by the file's name: JPEG, PNG, WEBP, GIF, BMP or TIFF. EXIF orientation is
    applied once; of an animation the first frame is taken; palettes, CMYK and one-bit pictures become RGB or grey;
    what is transparent shows `background`; 16-bit grey is scaled to 8 bits.

    Args:
        source: A path, the bytes of a file, or a binary file open for reading (read from its start). A path such as
            `a.tar@1536+20000` is the member of a tar whose 20,000 bytes begin at byte 1536.
        channels: 3 for RGB, 1 for grey (ITU-R 601 luma).
        background: The colour, red, green, blue in 0..255, under transparent pixels.
        max_pixels: Pictures of more pixels are refused from their header, before any memory is taken. Pillow's own
            limit, twice `PIL.Image.MAX_IMAGE_PIXELS`, holds as well.
        size: Height and width to resize to, exactly, with antialiasing; the aspect ratio is not kept. A JPEG at
            least twice that large is decoded at 1/2, 1/4 or 1/8 of its size, which is faster. None: as it is.
        notes: A list that gets one text for each oddity that was passed over, such as damaged EXIF data.

    Raises:
        MissingImageError: there is no such file (also a FileNotFoundError).
        ImageError: anything else that keeps the picture from being read; `reason` has it in one word.
        TypeError: a source that is neither a path, bytes nor a binary file.

    Example:
        >>> import io
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("LA", (3, 2), (0, 0)).save(file, "PNG")  # black, all transparent
        >>> read_image(file).shape, int(read_image(file).min())
        ((2, 3, 3), 255)
    """
    check_options(channels, background, max_pixels, size)
    name = _name(source)
    with _open(source, name) as file, _PILLOW_WARNINGS as oddities, _named(name):
        image = _identify(file, name, max_pixels)
        image, turn = _load(image, size, channels, oddities)
        image = _flatten(image, channels, background, name)
        if turn is not None:
            image = image.transpose(turn)
        if notes is not None:
            notes.extend(oddities)
    pixels = np.array(image).reshape(image.height, image.width, channels)
    return pixels if size is None else resize(pixels, size)


def check_options(channels: int, background: tuple[int, int, int], max_pixels: int, size: Any) -> None:
    """Raise ValueError unless these are options that `read_image` can use."""
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB); got {channels!r}")
    if len(background) != 3 or not all(0 <= value <= 255 for value in background):
        raise ValueError(f"background must be red, green and blue in 0..255; got {background!r}")
    check_positive(max_pixels, "max_pixels")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size must be height and width, each 1 or more; got {size!r}")


def _name(source: Source) -> str:
    """Return what messages call the source: its path, where it has one."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    if not hasattr(source, "read"):
        raise TypeError(f"source must be a path, bytes or a binary file; got {type(source).__name__}")
    return str(getattr(source, "name", "<file>"))


@contextmanager
def _open(source: Source, name: str) -> Iterator[BinaryIO]:
    """Yield `source` as a binary file; close it if it was opened here."""
    if isinstance(source, str | os.PathLike):
        with open_image(source, name) as file:
            yield file
    elif isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source)
    else:
        yield source


def member_address(tar: str | os.PathLike[str], offset: int, size: int) -> str:
    """Return the text by which `read_image` finds the `size` bytes from `offset` on in an uncompressed tar."""
    return f"{os.fspath(tar)}@{offset}+{size}"


def stat_image(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Return the size in bytes of an image file, or of a tar's member, and when the file changed last, in ns."""
    member = _MEMBER.fullmatch(os.fspath(path))
    status = os.stat(path if member is None else member[1])
    return status.st_size if member is None else int(member[3]), status.st_mtime_ns


def open_image(path: str | os.PathLike[str], name: str) -> BinaryIO:
    """Return the file at `path`, or the member of a tar at that address, open for reading.

    Args:
        path: Its path or address.
        name: What messages call it.

    Raises:
        MissingImageError: there is no such file.
        ImageError: it is no regular file, cannot be opened, or a tar ends before its member does.
    """
    member = _MEMBER.fullmatch(os.fspath(path))
    try:
        # Asked before opening: to open a pipe would wait for its writer, to open a device may do something.
        status = os.stat(path if member is None else member[1])
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name}: a directory; the path of an image file was wanted", "directory")
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name}: a pipe, socket or device; a regular file was wanted", "special")
        return open(path, "rb") if member is None else _read_member(member, name)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingImageError(f"{name}: no such file") from None
    except PermissionError:
        raise ImageError(f"{name}: no permission to read it", "permission") from None
    except OSError as error:
        raise ImageError(f"{name}: cannot be opened: {error.strerror}", "unreadable") from error
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name!r}: not a path: {error}", "unreadable") from None  # a NUL inside


def _read_member(member: re.Match[str], name: str) -> BinaryIO:
    """Return the bytes of a tar's member as a file."""
    offset, size = int(member[2]), int(member[3])
    if size > MAX_MEMBER_BYTES:
        raise ImageError(f"{name}: a member of {size:,} bytes; {MAX_MEMBER_BYTES:,} are allowed", "too_large")
    # Opened each time, which takes some microseconds: nothing is shared, kept open, or to be closed by workers.
    with open(member[1], "rb", buffering=0) as tar:
        held = os.fstat(tar.fileno()).st_size
        if offset + size > held:
            raise ImageError(f"{name}: truncated, the tar ends at byte {held:,}, before its member does", "truncated")
        tar.seek(offset)
        content = tar.read(size)
    if len(content) != size:
        raise ImageError(f"{name}: truncated, {len(content):,} bytes of {size:,} could be read", "truncated")
    return io.BytesIO(content)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn whatever Pillow raises into an `ImageError` about `name`."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # a damaged file raises nearly any type: SyntaxError, KeyError, struct.error, ...
        detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError(f"{name}: reading failed: {detail}", "unreadable") from error
        if isinstance(error, EOFError) or "truncated" in detail.lower():
            raise ImageError(
                f"{name}: truncated, the file ends before the picture does ({detail})", "truncated"
            ) from error
        raise ImageError(f"{name}: damaged ({detail})", "corrupt") from error


def _identify(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    """Return the image with its header read, its pixels not."""
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        raise _unidentified(file.read(64), name) from None
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name}: too large for Pillow's limit, PIL.Image.MAX_IMAGE_PIXELS: {error}", "too_large"
        ) from None
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{name}: too large, {width} x {height} pixels; max_pixels is {max_pixels:,}", "too_large")
    return image


def _unidentified(head: bytes, name: str) -> ImageError:
    """Return the error for a file that is in none of the accepted formats, told apart by its first bytes."""
    accepted = ", ".join(FORMATS)
    if not head:
        return ImageError(f"{name}: empty, there is not one byte; copy or download it again", "empty")
    kind = _signature(head)
    if kind:
        return ImageError(f"{name}: begins like a {kind} file, but its header is damaged or cut short", "corrupt")
    kind = "AVIF or HEIC" if head[4:8] == b"ftyp" else _match(head, _REFUSED)
    if kind:
        return ImageError(f"{name}: a file of format {kind}; convert it to one of {accepted}", "format")
    shown = repr(head[:24])[1:]
    what = "HTML or XML" if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") else "something else"
    return ImageError(f"{name}: not an image but {what}, it begins with {shown}; wanted: {accepted}", "not_an_image")


def image_format(head: bytes, name: str) -> str:
    """Return the format, one of `FORMATS`, in which a file begins; nothing of it is decoded.

    Args:
        head: Its first bytes, 64 or more where there are so many.
        name: What messages call it.

    Raises:
        ImageError: it begins in none of them.
    """
    kind = _signature(head)
    if kind is None:
        raise _unidentified(head[:64], name)
    return kind


def _signature(head: bytes) -> str | None:
    return "WEBP" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else _match(head, _SIGNATURES)


def _match(head: bytes, signatures: dict[bytes, str]) -> str | None:
    return next((kind for start, kind in signatures.items() if head.startswith(start)), None)


def _load(
    image: Image.Image, size: tuple[int, int] | None, channels: int, oddities: list[str]
) -> tuple[Image.Image, Image.Transpose | None]:
    """Return the image with its pixels read, JPEG scaled while decoding, and the turn that is still to do."""
    turn = None
    if image.format in ("JPEG", "MPO"):
        turn = _orientation(image, oddities)
        # The luma channel of a JPEG is the grey picture: there is no need to make the colours first.
        image.draft("L" if channels == 1 else None, None if size is None else _unturned(size, turn)[::-1])
        image.load()
    else:
        # Pillow turns a TIFF while loading it, and PNG may have its EXIF data behind the pixels.
        image.load()
        turn = _orientation(image, oddities)
    return image, turn


def _orientation(image: Image.Image, oddities: list[str]) -> Image.Transpose | None:
    """Return the turn that EXIF asks for, or None; EXIF data that cannot be read is an oddity, not an error."""
    try:
        exif = image.getexif()
        if not exif and "exif" in image.info:
            Image.Exif().load(image.info["exif"])  # raises what Pillow met while opening a JPEG and kept to itself
        value = exif.get(_ORIENTATION_TAG, 1)
        # 0 is what many programs write for "not known".
        if value not in range(9):
            oddities.append(f"EXIF orientation {value!r} is not in 1..8; ignored")
            return None
    except Exception as error:  # as wide as in _named, for the same reason
        oddities.append(f"damaged EXIF data ignored: {type(error).__name__}: {error}")
        return None
    return _UPRIGHT.get(value)


def _unturned(size: tuple[int, int], turn: Image.Transpose | None) -> tuple[int, int]:
    """Return `size` as it is before `turn`."""
    sideways = turn in (
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
    )
    return (size[1], size[0]) if sideways else size


def _flatten(image: Image.Image, channels: int, background: tuple[int, int, int], name: str) -> Image.Image:
    """Return the image in mode L or RGB: 16 bits scaled to 8, transparency laid on the background."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = _scale_depth(image, name)
    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (*background, 255))
        canvas.alpha_composite(image if image.mode == "RGBA" else image.convert("RGBA"))
        image = canvas
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _scale_depth(image: Image.Image, name: str) -> Image.Image:
    """Return grey of more than 8 bits as grey of 8 bits, by its full range: 65535 becomes 255."""
    tags = getattr(image, "tag_v2", {})
    # Mode I is 32 bits wide; older Pillow uses it for 16-bit PNG, of which the range is known.
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        kind = "floating-point" if image.mode == "F" else "32-bit integer"
        raise ImageError(
            f"{name}: {kind} pixels, whose range is not known; save it as 8 or 16 bits, scaled as you mean it", "depth"
        )
    top = 4095 if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else 65535
    values = np.asarray(image).astype(np.uint32)
    values = (np.minimum(values, top) * 255 + top // 2) // top
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero; Pillow inverts only 8 bits and less
        values = 255 - values
    return Image.fromarray(values.astype(np.uint8))


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the picture (H, W, C) at `size`, bilinear with antialiasing.

    The result differs from Pillow's by one grey level at most, and torch takes a third of Pillow's time for colours.
    """
    if pixels.shape[:2] == tuple(size):
        return pixels
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(planes, size=tuple(size), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


class _WarningCatcher:
    """A context in which what Pillow warns about is collected, for each thread its own, and does not leave it.

    `warnings.catch_warnings` alone is not enough: it keeps its state in the process, so that two threads leaving in
    another order than they came would leave the filters changed. Here the first in sets it and the last out resets it.
    """

    def __init__(self) -> None:
        self._reset()
        if hasattr(os, "register_at_fork"):
            # A child has only the thread that forked: of the others it would wait for ever.
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._local = threading.local()

    def __enter__(self) -> list[str]:
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("always", module=r"PIL\.")
                self._show = warnings.showwarning
                warnings.showwarning = self._take
            self._inside += 1
        self._local.notes = []
        return self._local.notes

    def __exit__(self, *_: object) -> None:
        del self._local.notes
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)

    def _take(self, message: Any, category: Any, filename: str, *place: Any, **where: Any) -> None:
        notes = getattr(self._local, "notes", None)
        if notes is None or os.path.dirname(filename) != os.path.dirname(Image.__file__):
            self._show(message, category, filename, *place, **where)
        elif category is not Image.DecompressionBombWarning:  # max_pixels has the say on that
            notes.append(str(message).strip().split("\n")[0])


_PILLOW_WARNINGS = _WarningCatcher()
