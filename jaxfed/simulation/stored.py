"""Files that may be damaged or a stranger's: read within bounds, and written through no link.

What is not as it should be ends in a ValueError that names the file; that the system refuses to
read or write is an OSError. Nothing here unpickles or executes what it reads.
"""

import contextlib
import io
import json
import os
import re
import stat
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

TEXT = 2**22  # bytes of a config, or of a file that holds one JSON object
LINE = 2**24  # bytes of a line
FILE = 2**30  # bytes of any other file, and of what its arrays unpack to


def check(path: Path, most: int | None = FILE) -> None:
    """Raises ValueError unless this is a regular file of up to `most` bytes; None: of any size.

    A pipe or a device is so refused before it is opened.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError(f"{path} is no regular file; put a copy of the run's own back")
    if most is not None and about.st_size > most:
        raise ValueError(
            f"{path} has {about.st_size:,} bytes, and a run's own has up to {most:,}; put a copy "
            "of it back"
        )


def read(path: Path, most: int = FILE) -> bytes:
    """The content of a regular file of up to `most` bytes."""
    check(path, most)
    with open(path, "rb") as file:
        return file.read(most)


def lines(path: Path, most: int | None = FILE) -> Iterator[bytes]:
    """The lines of a regular file, each with its end; the last may lack it.

    The file has up to `most` bytes; None, for one that is read line by line, bounds each line only.
    """
    check(path, most)
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(LINE + 1):
            number += 1
            if len(line) > LINE:
                raise ValueError(
                    f"{path}, line {number} has more than {LINE:,} bytes; put a copy of it back"
                )
            yield line


def objects(path: Path, most: int | None = FILE) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """(number, line, object) of each line of JSON; a last line that a kill cut is left out.

    `most` bytes bound the file, as in `lines`.

    ValueError, naming the line, if another holds no object.
    """
    for number, line in enumerate(lines(path, most), start=1):
        try:
            found = parsed(line, f"{path}, line {number}")
        except ValueError:
            if line.endswith(b"\n"):
                raise
            return
        yield number, line, found


def object_of(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    return parsed(read(path, TEXT), path)


def parsed(text: bytes, where: object) -> dict[str, Any]:
    """The JSON object that the text is, with NaN and infinity as None."""
    try:
        found = json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is damaged ({error}); put a copy of it back") from None
    if not isinstance(found, dict):
        raise ValueError(
            f"{where} is damaged (it holds {named(found)}, not an object); put a copy of it back"
        )
    return found


def check_kinds(found: Mapping[Any, Any], kinds: Mapping[Any, tuple], where: object) -> None:
    """Raises ValueError for the first field that is there and of none of the kinds it may have."""
    for name, allowed in kinds.items():
        value = found.get(name)
        right = isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool))
        if name in found and not right:
            wanted = " or ".join(NAMES[kind] for kind in allowed)
            raise ValueError(
                f"{where} is damaged ({plain(str(name))[:100]} is {named(value)}, not {wanted}); "
                "put a copy of it back"
            )


NAMES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "null",
}


def named(value: Any) -> str:
    """What JSON calls a value, for a sentence: "a list"."""
    return NAMES[type(value)]


def plain(text: str) -> str:
    """The text with a question mark for each character that a terminal might obey."""
    return "".join(c if c.isprintable() else "?" for c in text)


def arrays(content: bytes, names: tuple[str, ...], where: object) -> dict[str, np.ndarray]:
    """The arrays of these names in the content of an .npz file that unpacks to `FILE` bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            members = {name: packed.getinfo(f"{name}.npy") for name in names}
            if sum(member.file_size for member in members.values()) > FILE:
                raise ValueError(f"it unpacks to more than {FILE:,} bytes")
            files = {name: io.BytesIO(packed.read(member)) for name, member in members.items()}
        return {name: np.load(file, allow_pickle=False) for name, file in files.items()}
    except (
        ValueError,
        KeyError,
        EOFError,
        MemoryError,
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise _damaged(where, error) from None
    except (zipfile.BadZipFile, zlib.error, SyntaxError, OverflowError, OSError) as error:
        raise _damaged(where, error) from None


def _damaged(where: object, error: Exception) -> ValueError:
    cause = str(error).strip("'\"").partition("\n")[0] or type(error).__name__
    return ValueError(f"{where} is damaged ({plain(cause)}); put a copy of it back")


@contextlib.contextmanager
def writing(path: Path, remedy: str = "put this right, and then run or resume") -> Iterator[None]:
    """Turns a failure to write, such as a full disk, into an OSError with path and remedy."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        raise OSError(f"{path} could not be written: {cause}; {remedy}") from error


def replace(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all, and in the place of a link, not where it leads."""
    _put(path, content, path.with_name(path.name + ".new"))


def save(path: Path, content: str | bytes, remedy: str = "choose another file") -> Path:
    """The path, once a file that the user asked for is written there, whole or not at all.

    As `replace`, but among files of the user's, so that until it is whole it has a name that none
    of them has. What a process left there that was killed is removed. OSError, with the remedy, if
    it cannot be written.
    """
    with writing(path, remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(path)
        _put(path, content, path.with_name(f".{path.name}.{os.getpid()}.new"))
    return path


LEFT = 600  # seconds without a write, after which nobody writes a file any more


def _remove_left(path: Path) -> None:
    """Removes files that a killed `save` of this path left; those still being written stay."""
    name = re.compile(rf"\.{re.escape(path.name)}\.\d+\.new")
    for left in path.parent.iterdir():
        if name.fullmatch(left.name):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left.lstat().st_mtime > LEFT:
                    left.unlink()


def _put(path: Path, content: str | bytes, new: Path) -> None:
    new.unlink(missing_ok=True)
    with open(new, "xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def check_no_link(path: Path, remedy: str) -> None:
    """Raises ValueError if what is to be written leads elsewhere by a link."""
    if path.is_symlink():
        raise ValueError(f"{path} is a link, and nothing is written through one; {remedy}")
