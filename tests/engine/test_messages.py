from __future__ import annotations

import errno

import pytest

from omnitrunk.engine.config import read
from omnitrunk.engine.messages import remedy


@pytest.mark.parametrize(
    ("section", "name", "value", "said"),
    [
        ("evaluate", "vote", "z", "expected one of count, weighted, got z"),
        ("optimizer", "betas", 3, "expected a list, got 3"),
        ("optimizer", "betas", [0.9], "expected a list of 2, got [0.9]"),
        ("optimizer", "lr", "fast", "expected a number, got fast"),
        ("data", "batch", 2.5, "expected a whole number, got 2.5"),
        ("data", "flip", "maybe", "expected true or false, got maybe"),
        ("run", "folder", 3, "expected text, got 3"),
        ("mixture", "repeat", 3, 'expected a table such as {"video": 1.0}, got 3'),
        ("model", "alphas", "x", 'expected a table such as {"video": 1.0} or a number, got x'),
        ("model", "image_size", "x", "expected a whole number or a list, got x"),
    ],
)
def test_a_value_of_a_wrong_type_is_told_without_python(section, name, value, said):
    with pytest.raises(ValueError) as caught:
        read({section: {name: value}})
    assert str(caught.value) == f"{section}.{name}: {said}"


def test_a_wrong_entry_of_a_table_is_told_by_its_value():
    with pytest.raises(ValueError) as caught:
        read({}, ["--model.alphas.rgb", "x"])
    assert str(caught.value) == "model.alphas: expected a number, got x"


def test_only_a_full_disk_is_told_to_make_room(tmp_path):
    for number in (errno.ENOSPC, errno.EDQUOT):
        assert remedy(OSError(number, "full"), tmp_path) == "make room"
    assert remedy(RuntimeError("I/O error: No space left on device (os error 28)"), tmp_path) == "make room"
    for number in (errno.EACCES, errno.EPERM, errno.EROFS):
        assert remedy(OSError(number, "no"), tmp_path) == f"check the permissions of {tmp_path}"
    assert remedy(OSError(errno.EIO, "Input/output error"), tmp_path) == "check the disk"


def test_an_unwritable_folder_is_named_where_the_library_gives_no_reason(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)
    assert remedy(RuntimeError("File o.pth cannot be opened."), tmp_path) == f"check the permissions of {tmp_path}"
