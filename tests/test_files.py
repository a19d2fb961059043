"""Files that are there whole or not at all; files of others that are read with care."""

import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hf_tl import (
    Footprint,
    FullNetworkEmbedding,
    LoraConfig,
    Network,
    add_lora,
    list_layers,
    save_adapter,
)
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
    with pytest.raises(InputError, match=r"cannot be read: ValueError: .*embedded null"):
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


SAVED = {  # everything that a user saves, each into a folder or file of its own
    "embedding": lambda made, path: made.embedding.save(path),
    "shards": lambda made, path: made.embedding.to_parquet(path),
    "fitted embedding": lambda made, path: made.fitted.save_pretrained(path),
    "adapter": lambda made, path: save_adapter(made.adapted, path),
    "picture": lambda made, path: made.layers.plot(path / "layers.png", title="layers"),
    "footprint": lambda made, path: made.footprint.save(path / "footprint.json"),
}


@pytest.fixture(scope="module")
def made():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    fitted = FullNetworkEmbedding(Network(model, prepare=torch.stack), progress=False)
    embedding = fitted.fit_transform(list(torch.randn(10, 4)))
    with Footprint("nothing") as footprint:
        pass
    layers = list_layers(model, example=torch.zeros(2, 4))
    adapted = add_lora(nn.Sequential(nn.Linear(4, 6)), LoraConfig(r=2, target_modules=["0"]))
    return SimpleNamespace(embedding=embedding, fitted=fitted, adapted=adapted, layers=layers, footprint=footprint)


@pytest.mark.parametrize("what", SAVED)
def test_a_place_that_is_no_folder_is_named_whatever_is_saved(made, tmp_path, what):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match=r"file' cannot be made a folder: File exists|there is no folder '.*file'"):
        SAVED[what](made, tmp_path / "file")
    with pytest.raises(
        InputError, match=r"null\\x00byte' cannot be made a folder: .*embedded null|there is no folder '.*null"
    ):
        SAVED[what](made, tmp_path / "null\0byte")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("what", SAVED)
def test_a_full_disk_is_a_sentence_whatever_is_saved(made, tmp_path, what, small_disk):
    with pytest.raises(InputError, match=r"cannot be written|are free on that disk"):
        SAVED[what](made, small_disk / "folder")


@pytest.fixture
def small_disk(tmp_path):
    """A disk with room for folders and for nothing in them; only who may mount one has it."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    (tmp_path / "full").write_bytes(bytes(4096))
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)  # a writer that failed may hold its file
