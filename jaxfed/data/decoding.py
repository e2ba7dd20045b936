"""Images from files, pillow, arrays and tensors: [H, W, 1 or 3] each, and all in one array."""

import gzip
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np

from jaxfed import values
from jaxfed.data import memory, rows

AT_ONCE = 256  # images decoded before they are put in place


def decoded(paths: Sequence[Path], size: int | None) -> Iterator[tuple[str, np.ndarray]]:
    """(path, image) in order, decoded by several threads."""
    with futures.ThreadPoolExecutor() as pool:
        for begin in range(0, len(paths), AT_ONCE):
            part = paths[begin : begin + AT_ONCE]
            images = pool.map(lambda path: _opened(path, size), part)
            yield from zip(map(str, part), images, strict=True)


def _opened(path: Path, size: int | None) -> np.ndarray:
    if path.suffix == ".npy":
        return array(npy(path), str(path), size)
    library = pillow()
    try:
        with library.open(path) as image:
            image.load()
            return array(image, str(path), size)
    except (OSError, SyntaxError, library.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read ({error}); replace or remove it") from None


def pillow() -> Any:
    """The module PIL.Image; ValueError if it is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("folders of images need pillow: pip install 'jaxfed[data]'") from None
    return Image


def npy(path: Path) -> np.ndarray:
    """The array of an .npy file."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({error}); write it by np.save") from None


def idx(path: Path) -> np.ndarray:
    """The array of bytes in a file of MNIST's format: 0, 0, type, axes, then each axis' length."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            held = file.read()
        shape = np.frombuffer(held, ">i4", held[3], offset=4)
        if held[:3] != b"\0\0\x08":
            raise ValueError(f"it begins with {held[:3]!r}")
        return np.frombuffer(held, np.uint8, offset=4 + 4 * held[3]).reshape(shape)
    except (*rows.DAMAGED, OSError, ValueError, IndexError) as error:
        raise ValueError(f"{path} cannot be read ({error}); download it again") from None


def array(image: Any, at: str, size: int | None) -> np.ndarray:
    """One image [H, W, 1 or 3], uint8 or float32, of an image of pillow's, an array or a tensor."""
    if hasattr(image, "convert") and hasattr(image, "mode"):
        return _of_pillow(image, at, size)
    tensor = type(image).__module__.startswith("torch")
    x = values.array(at, image.numpy() if tensor else image)
    if x.ndim == 2:
        x = x[..., None]
    if tensor and x.ndim == 3 and x.shape[0] in (1, 3) and x.shape[-1] not in (1, 3):
        x = np.moveaxis(x, 0, -1)  # torch has channels first
    if x.ndim != 3 or x.shape[-1] not in (1, 3) or x.dtype.kind not in "uif" or not x.size:
        raise ValueError(
            f"{at} is {x.dtype} {x.shape}; give images [H, W], [H, W, 1] or [H, W, 3] of numbers"
        )
    if x.dtype.kind == "f":
        x = x.astype(np.float32)
        if size is not None and x.shape[:2] != (size, size):
            raise ValueError(
                f"{at} is of floats {x.shape}; resize it where it is made, not by size="
            )
        return x
    x = as_bytes(x, at)
    if size is None or x.shape[:2] == (size, size):
        return x
    return _of_pillow(pillow().fromarray(x.squeeze(-1) if x.shape[-1] == 1 else x), at, size)


def as_bytes(x: np.ndarray, at: str) -> np.ndarray:
    """Whole numbers as uint8; raises ValueError if they are not 0 to 255."""
    if x.dtype != np.uint8 and not 0 <= x.min() <= x.max() <= 255:
        raise ValueError(f"{at} has values from {x.min()} to {x.max()}; give 0 to 255, or floats")
    return x.astype(np.uint8, copy=False)


def _of_pillow(image: Any, at: str, size: int | None) -> np.ndarray:
    from PIL import ImageOps

    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(f"{at} has pixels of mode {image.mode}; convert it to 8 bits a channel")
    image = ImageOps.exif_transpose(image).convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), pillow().Resampling.BILINEAR)
    x = np.asarray(image)
    return x[..., None] if x.ndim == 2 else x


def coloured(x: np.ndarray) -> np.ndarray:
    """[..., 1 or 3] -> [..., 3]."""
    return np.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x


def stacked(name: str, count: int, images: Iterator[tuple[str, np.ndarray]]) -> np.ndarray:
    """The images in one array [count, H, W, C], put in place one by one."""
    first, made = "", np.zeros(0)
    for i, (at, x) in enumerate(images):
        if not i:
            _check_memory(name, 2 * count * x.nbytes)
            first, made = at, np.empty((count, *x.shape), x.dtype)
        if x.shape[-1] > made.shape[-1]:
            made = coloured(made)
        if x.shape[:2] != made.shape[1:3] or x.dtype != made.dtype:
            raise ValueError(
                f"{at} is {x.dtype} {x.shape[:2]}, and {first} {made.dtype} {made.shape[1:3]}; "
                "give size= to resize all, and one type"
            )
        made[i] = x
    if not count:
        raise ValueError(f"{name} is empty; give a row for each image")
    return made


def _check_memory(name: str, needed: int) -> None:
    """Raises ValueError if all images and a copy of them do not fit."""
    if needed > (free := memory.free()):
        raise ValueError(
            f"{name} needs about {needed / 1e9:.2g} GB of memory, and {free / 1e9:.2g} GB are "
            "free; give fewer images, or a smaller size="
        )
