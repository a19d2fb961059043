"""Files that are there whole or not at all; files of others that are read with care."""

import os

import pytest

from hf_tl.errors import InputError
from hf_tl.files import leads_out, read_untrusted, write_whole


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_whole(tmp_path / "a", b"old")

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(InputError, match=r"a' cannot be written: OSError: .* No space left on device"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_file_that_cannot_be_replaced_is_said_so(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="a' cannot be written"):
        write_whole(tmp_path / "a", b"new")
    assert os.listdir(tmp_path) == ["a"]


def test_only_a_regular_file_of_a_sane_size_is_read(tmp_path):
    path = write_whole(tmp_path / "a", b"12345")
    assert read_untrusted(path, largest=5) == b"12345"
    with pytest.raises(InputError, match="has 5 bytes; hf_tl reads at most 4"):
        read_untrusted(path, largest=4)
    with pytest.raises(FileNotFoundError):
        read_untrusted(tmp_path / "b", largest=4)
    with pytest.raises(InputError, match="is not a regular file"):
        read_untrusted(tmp_path, largest=4)
    with pytest.raises(InputError, match="cannot be read: ValueError: embedded null byte"):
        read_untrusted(tmp_path / "a\0b", largest=4)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_and_a_device_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(InputError, match="is not a regular file"):
            read_untrusted(tmp_path / name, largest=4)


def test_which_links_lead_out(tmp_path):
    """The Hub's cache keeps snapshots/<commit>/<file> as links to blobs/<digest>."""
    blobs, folder = tmp_path / "models--me--x" / "blobs", tmp_path / "models--me--x" / "snapshots" / "1f"
    blobs.mkdir(parents=True)
    folder.mkdir(parents=True)
    for path in (blobs / "digest", folder / "here", tmp_path / "secret"):
        path.write_text("")
    links = {"cached": blobs / "digest", "inside": folder / "here", "outside": tmp_path / "secret", "circle": "circle"}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    assert {name: leads_out(folder / name) for name in ("here", "missing", *links)} == {
        "here": False,
        "missing": False,
        "cached": False,
        "inside": False,
        "outside": True,
        "circle": True,
    }
