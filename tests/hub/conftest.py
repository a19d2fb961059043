"""A Hub on this machine, and this process pointed to it."""

import os

import pytest
from loopback import TOKEN, LoopbackHub


os.environ["HF_XET_CLIENT_RETRY_MAX_ATTEMPTS"] = "1"  # when hf_xet is first used; else minutes


@pytest.fixture(params=["lfs"])
def hub(request, tmp_path, monkeypatch):
    """A Hub without repositories; the user "me" may write, "reader" may not. `xet` in the parameter for Xet."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.hf_api import api

    xet = request.param == "xet"
    store = tmp_path / "store"
    store.mkdir()
    with LoopbackHub(store, tokens={TOKEN: "me"}, readers={"hf_reader": "me"}, xet=xet) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(api, "endpoint", hub.url)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
    huggingface_hub.close_session()
