"""A push that is cut off, wherever: the repository is at its old commit or at its new one, and never in between.

Every request of a push is cut in every way that a connection, a server or a process can end. A push to a repository
that exists must leave the old files or the new ones; one to a repository that does not exist leaves none, an empty
one, or the new files. The same push, repeated, always arrives.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from lanes import lanes
from loopback import TOKEN
from safetensors.numpy import save

from hf_tl.errors import InputError
from hf_tl.hub import push_files


def version(folder: Path, number: int) -> dict[str, Path]:
    """Files that belong together: all of them name their version."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(f'{{"version": {number}}}')
    (folder / "adapter_model.safetensors").write_bytes(save({"version": np.full(64, number, np.float32)}))
    return {path.name: path for path in folder.iterdir()}


def push(folder: Path, number: int) -> None:
    push_files(
        version(folder, number), "me/adapter", card=lambda old: f"---\n{{}}\n---\nversion {number}", message="m"
    )


def version_of(hub) -> int | None:
    """Which version the repository holds, whole; None for none."""
    if "me/adapter" not in hub.repos:
        return None
    files = hub.files("me/adapter")
    if set(files) == {".gitattributes"}:
        return None
    assert set(files) == {".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors"}
    number = int(files["README.md"].split()[-1])
    assert files["adapter_config.json"] == f'{{"version": {number}}}'.encode()
    if not hub.xet:
        assert files["adapter_model.safetensors"] == save({"version": np.full(64, number, np.float32)})
    return number


class Cut:
    """The fault: from one request on, or at it alone, the server behaves in one of its ways."""

    def __init__(self, where: str, how: str, *, once: bool = False):
        self.where, self.how, self.once, self.met = where, how, once, 0

    def __call__(self, method: str, path: str) -> str | None:
        self.met += self.where in f"{method} {path}"
        if self.once:
            return self.how if self.met == 1 and self.where in f"{method} {path}" else None
        return self.how if self.met else None


CUTS = {  # where in the push the server begins to be dead, and how
    "dead before anything": ("GET /api/models", "drop"),
    "dead at the repository": ("/api/repos/create", "drop"),
    "made, and no answer": ("/api/repos/create", "mute"),
    "dead at the card": ("/api/validate-yaml", "drop"),
    "dead at the list of files": ("/preupload/", "drop"),
    "dead before the large file": ("/objects/batch", "drop"),
    "dead in the large file": ("PUT /lfs/", "half"),
    "large file, and no answer": ("PUT /lfs/", "mute"),
    "dead after the large file": ("/verify", "drop"),
    "dead before the commit": ("/commit/", "drop"),
    "dead in the commit": ("/commit/", "half"),
    "out of order at the commit": ("/commit/", "unavailable"),
    "committed, and no answer": ("/commit/", "mute"),
}
NEW = ("committed, and no answer",)


@pytest.fixture
def impatient(monkeypatch):
    """The client tries again without waiting for seconds."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


DEAD = [(case, "new") for case in CUTS] + [(case, "old") for case in CUTS if "create" not in CUTS[case][0]]
QUICK = ("dead at the repository", "dead in the large file", "dead in the commit", "committed, and no answer")


@pytest.mark.parametrize("moment", lanes(DEAD, fast=lambda moment: moment[0] in QUICK), ids="-".join)
def test_a_server_that_dies(hub, tmp_path, impatient, moment):
    case, state = moment
    where, how = CUTS[case]
    if state == "old":
        push(tmp_path / "files", 1)
    before = len(hub.commits("me/adapter"))
    hub.fault = cut = Cut(where, how)
    with pytest.raises(InputError, match="push again") as caught:
        push(tmp_path / "files", 2)
    assert cut.met
    assert TOKEN not in str(caught.value)
    assert version_of(hub) == (2 if case in NEW else 1 if state == "old" else None)
    assert len(hub.commits("me/adapter")) - before <= (2 if state == "new" else 1)
    hub.fault = lambda method, path: None
    push(tmp_path / "files", 2)
    assert version_of(hub) == 2
    assert len(hub.commits("me/adapter")) == (3 if state == "old" else 2)  # once, however often it was tried


@pytest.mark.slow
@pytest.mark.parametrize("hub", ["xet"], indirect=True)
@pytest.mark.parametrize("case", ["/xet-write-token/", "/preupload/", "/commit/"])
def test_a_server_that_dies_with_xet(hub, tmp_path, impatient, case):
    push(tmp_path / "files", 1)
    hub.fault = cut = Cut(case, "unavailable")
    with pytest.raises(InputError, match="push again") as caught:
        push(tmp_path / "files", 2)
    assert cut.met
    assert TOKEN not in str(caught.value)
    assert version_of(hub) == 1
    hub.fault = lambda method, path: None
    push(tmp_path / "files", 2)
    assert version_of(hub) == 2


@pytest.mark.parametrize("case", ["PUT /lfs/", "/preupload/", "/objects/batch"])
def test_a_hiccup_is_tried_again(hub, tmp_path, impatient, case):
    hub.fault = cut = Cut(case, "unavailable", once=True)
    push(tmp_path / "files", 1)
    assert cut.met > 1
    assert version_of(hub) == 1


CLIENT = """
import sys
from pathlib import Path
from test_interrupted import push
print(flush=True)
push(Path(sys.argv[1]), 2)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", [*(pytest.param(at, marks=pytest.mark.slow) for at in ("/preupload/", "PUT /lfs/")), "/commit/"]
)
def test_a_client_that_is_killed(hub, tmp_path, where):
    push(tmp_path / "files", 1)
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **settings}
    arguments = [sys.executable, "-c", textwrap.dedent(CLIENT), str(tmp_path / "files")]
    client = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def kill(method: str, path: str) -> None:
        if where in f"{method} {path}":
            client.send_signal(signal.SIGKILL)
            client.wait()

    hub.fault = kill
    _, said = client.communicate()
    assert client.returncode == -signal.SIGKILL, said
    while where not in "{} {}".format(*hub.log[-1][:2]):  # the request was on its way
        time.sleep(0.01)
    # a commit that the server has in full, it carries out
    assert version_of(hub) == 1 or (where == "/commit/" and version_of(hub) == 2)
    hub.fault = lambda method, path: None
    push(tmp_path / "files", 2)
    assert version_of(hub) == 2
    assert len(hub.commits("me/adapter")) == 3
