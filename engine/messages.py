"""What libraries and the system say, in words for people: values of a wrong type, disks that do not take a file."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

KINDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": 'a table such as {"video": 1.0}',
}
"""Python's types as those call them who write a configuration."""
FULL = (errno.ENOSPC, errno.EDQUOT)
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


def one_line(error: Exception) -> str:
    """What jsonargparse says of a value, without line breaks and Python's type notation."""
    text = " ".join(str(error).split()).replace("typing.", "")
    text = re.sub(r"<class '(\w+)'>", r"\1", text)
    text = re.sub(r"NestedArg\(key=.+?, val='?(.*?)'?\)", r"\1", text)
    text = re.sub(r'^Parser key "([\w.]+)":', r"\1:", text)
    text = re.sub(r"Does not validate against any of the Union subtypes .+? Errors: (.+)", _union, text)
    return re.sub(r"Expected an? (.+?)\.? Got value: (.+)", lambda found: _wrong([found[1]], found[2]), text)


def _union(found: re.Match[str]) -> str:
    """The sentence about a value that is of none of several types, from what is said of each."""
    said, _, value = found[1].rpartition(" Given value: ")
    parts = re.split(r"(?:^| )- (?=Expected)", said.partition(" Given value type: ")[0])
    return _wrong([part.partition("Expected a")[2].lstrip("n ").partition(". Got")[0] for part in parts[1:]], value)


def _wrong(kinds: list[str], value: str) -> str:
    return f"expected {' or '.join(dict.fromkeys(map(_kind, kinds)))}, got {value}"


def _kind(kind: str) -> str:
    if found := re.fullmatch(r"Literal\[(.+)\]", kind):
        return f"one of {found[1].replace(chr(39), '')}"
    if found := re.fullmatch(r"(?:tuple|list) with (\d+) elements?", kind):
        return f"a list of {found[1]}"
    return KINDS.get(kind, kind)


def remedy(error: BaseException, folder: Path) -> str:
    """What to do where a file could not be written to `folder`: begins with a verb."""
    told = re.search(r"os error (\d+)", str(error))  # by libraries that have no number to ask for
    number = getattr(error, "errno", None) or (int(told[1]) if told else None)
    if number in DENIED or (folder.is_dir() and not os.access(folder, os.W_OK)):
        return f"check the permissions of {folder}"
    return "make room" if number in FULL else "check the disk"
