"""A file is replaced as a whole, or stays what it was, and nothing is left beside it."""

import os
import stat
import threading
from pathlib import Path

import pytest

from ciar.file_lock import locked
from ciar.output_file import replace_file, replacing


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    replace_file(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_bytes(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    with replacing(path) as part:
        part.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["state.json"]


def test_a_link_stays_one_and_the_mode_is_as_asked(tmp_path: Path) -> None:
    file, link = tmp_path / "there" / "file", tmp_path / "link"
    file.parent.mkdir()
    link.symlink_to(file)
    replace_file(link, b"1", mode=0o600)
    assert link.is_symlink() and file.read_bytes() == b"1"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_one_at_a_time(tmp_path: Path) -> None:
    """Eight that read, and write one more, by a link or not: none is lost."""
    path, link = tmp_path / "count", tmp_path / "others" / "count"
    path.write_text("0")
    link.parent.mkdir()
    link.symlink_to(path)

    def count(where: Path) -> None:
        for _ in range(20):
            with locked(where):
                replace_file(where, str(int(where.read_text()) + 1).encode())

    threads = [threading.Thread(target=count, args=((path, link)[i % 2],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() == "160"
