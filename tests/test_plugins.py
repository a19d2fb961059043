"""A package of somebody else's brings a pooling, an action and a head; what is broken is in nobody's way."""

import importlib
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_images
from PIL import Image
from torch import nn

from hf_tl import (
    FullNetworkEmbedding,
    InputError,
    Policy,
    PolicyCallback,
    learning_curve,
    list_layers,
    load_network,
    make_head,
    plugins,
)
from hf_tl.cli.main import main
from hf_tl.plugins import GROUP, find_plugin, list_plugins


PACKAGE = Path(__file__).parent / "plugin_package"
DOCS = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text()


def install(site: Path, name: str, version: str, entries: dict[str, str]) -> None:
    """The metadata that an installer writes."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{entry} = {path}" for entry, path in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
    find_plugin.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of packages, first on the path, with tests/plugin_package in it as its pyproject.toml says."""
    folder = tmp_path / "site"
    shutil.copytree(PACKAGE / "tl_extras", folder / "tl_extras")
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    install(folder, project["name"], project["version"], project["entry-points"][GROUP])
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    find_plugin.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tl_extras", "faulty")]:
        del sys.modules[name]


@pytest.fixture
def network(timm_folder):
    return load_network(str(timm_folder))


def pictures(n, seed=0):
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(n)]


def layers():
    """A stem, five blocks and a head."""
    chain = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(6)], nn.Linear(4, 2))
    return list_layers(chain, example=torch.randn(2, 4))


def test_they_are_listed_and_not_imported(site, capsys):
    assert [(one.kind, one.name, one.origin) for one in list_plugins()] == [
        ("action", "sandwich", "tl-extras 1.2"),
        ("head", "centroid", "tl-extras 1.2"),
        ("pooling", "median", "tl-extras 1.2"),
        ("strategy", "majority", "tl-extras 1.2"),
    ]
    assert main(["plugins"]) == 0
    rows = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()[2:5]]
    assert rows[2] == ["pooling", "median", "tl-extras 1.2", "tl_extras.poolings:median"]
    assert not any(name.startswith("tl_extras") for name in sys.modules)
    assert main(["plugins", "--check"]) == 0
    assert "all of them can be imported" in capsys.readouterr().out
    assert "tl_extras.poolings" in sys.modules


def test_one_name_imports_one_module(site):
    assert find_plugin("pooling", "median") is not None
    assert "tl_extras.poolings" in sys.modules
    assert not {"tl_extras.actions", "tl_extras.heads"} & set(sys.modules)
    assert find_plugin("head", "median") is None


def test_listing_costs_no_torch(site):
    code = "import sys; from hf_tl.plugins import list_plugins; print(list_plugins(), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "tl-extras 1.2" in done.stdout
    assert done.stdout.strip().endswith("False")


def test_a_pooling_by_name_by_path_and_as_an_object(site, network):
    features = [
        np.asarray(FullNetworkEmbedding(network, recipe="raw", pool=pool, progress=False).fit_transform(pictures(3)))
        for pool in (
            "median",
            "tl_extras.poolings:median",
            find_plugin("pooling", "median"),
            {"conv": "median"},
            "mean",
        )
    ]
    assert np.array_equal(features[0], features[1])
    assert np.array_equal(features[0], features[2])
    assert not np.array_equal(features[0], features[4])
    assert "median" in FullNetworkEmbedding(network, pool="median").describe()


def test_a_stored_pass_knows_whose_pooling_it_was(site, network, tmp_path):
    from hf_tl.embedding.fingerprint import fingerprint_pooling

    assert fingerprint_pooling("mean") == "mean"
    assert fingerprint_pooling("median") == "median of tl-extras 1.2 (tl_extras.poolings:median)"


def test_an_action_is_put_into_the_actions_of_policies(site):
    found = layers()
    expected = Policy("freeze: all; tune: 0..2, -2.., head; lr: x0.1 0..2; dropout: off head").plan(found)
    for text in ("sandwich: 2; dropout: off head", "tl_extras.actions:sandwich: 2; dropout: off head"):
        assert Policy(text).plan(found) == expected
        assert PolicyCallback(text).policy.plan(found) == expected
    assert [setting.trains for setting in expected.settings] == [False, True, True, False, True, True, True]
    with pytest.raises(InputError, match="sandwich takes 1 to 2 blocks at each end, got '3'"):
        Policy("sandwich: 3").plan(found)
    with pytest.raises(InputError, match=r"has no action 'sandwhich'; .* 'sandwich'"):
        Policy("sandwhich: 2")


def test_an_action_holds_for_a_phase(site):

    found = layers()
    phased = Policy("", [("0", "tune: head"), ("1 epochs", "sandwich: 1")]).plans(found)
    assert [setting.trains for setting in phased[1].settings] == [False, True, False, False, False, True, True]


def test_a_head_by_name_by_path_and_as_an_object(site):
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    rows = generator.standard_normal((60, 5)) + 3 * np.eye(5)[labels]
    for name in ("centroid", "tl_extras.heads:centroid", find_plugin("head", "centroid")):
        assert make_head(name, rows.shape).fit(rows, labels).score(rows, labels) > 0.9


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")  # NearestCentroid, of flat features
def test_the_command_line_takes_them(site, timm_folder, tmp_path, monkeypatch, capsys):
    write_images(tmp_path / "images")
    write_images(tmp_path / "images", rows=3, split="test")
    monkeypatch.chdir(tmp_path)
    assert main(["embed", str(timm_folder), "images", "--out", "runs/median", "--pool", "median"]) == 0
    assert main(["probe", "runs/median", "--head", "centroid"]) == 0
    assert "full network" in capsys.readouterr().out
    assert main(["probe", "runs/median", "--head", "centroids"]) == 2
    assert re.search("--head 'centroids' is none of svm, .*centroid", capsys.readouterr().err)
    assert main(["embed", str(timm_folder), "images", "--out", "x", "--pool", "nowhere.at_all:it"]) == 2
    said = capsys.readouterr().err
    assert "pooling 'nowhere.at_all:it' cannot be imported" in said
    assert "is it installed, or in a folder of PYTHONPATH?" in said


FAULTY = {
    "raises": (
        "raise RuntimeError('an old version')",
        "cannot be imported from faulty:it: RuntimeError: an old version",
    ),
    "leaves": ("raise SystemExit(3)", "cannot be imported from faulty:it: SystemExit: 3"),
    "lacks": ("other = 1", "cannot be imported from faulty:it: AttributeError: module 'faulty' has no attribute 'it'"),
    "is a number": (
        "it = 1",
        r"should be a function \(values, mask\) -> \(samples, channels\), .* got int at faulty:it",
    ),
}


@pytest.mark.parametrize("case", FAULTY)
def test_a_broken_one_is_in_its_users_way_only(site, network, capsys, case):
    text, sentence = FAULTY[case]
    (site / "faulty.py").write_text(text)
    install(site, "faulty", "0.1", {"pooling.faulty": "faulty:it"})
    assert find_plugin("pooling", "median") is not None
    assert main(["plugins"]) == 0
    assert "faulty" not in sys.modules
    with pytest.raises(InputError, match=f"pooling 'faulty' of faulty 0.1 {sentence}"):
        FullNetworkEmbedding(network, pool="faulty").describe()
    capsys.readouterr()
    assert main(["plugins", "--check"]) == 0
    assert re.search(f"note: pooling 'faulty' of faulty 0.1 {sentence}", capsys.readouterr().out)


def test_two_of_one_name_are_said(site, network, capsys):
    install(site, "other", "2.0", {"pooling.median": "tl_extras.poolings:median", "pooling.mean": "faulty:it"})
    with pytest.raises(InputError, match=r"other 2\.0 and tl-extras 1\.2 bring a pooling 'median'; uninstall one"):
        find_plugin("pooling", "median")
    assert find_plugin("pooling", "tl_extras.poolings:median") is not None
    assert find_plugin("head", "centroid") is not None
    FullNetworkEmbedding(network, pool="mean").describe()  # hf_tl's own is nobody else's
    assert main(["plugins"]) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines() if " median " in line] == [
        "other",
        "tl-extras",
    ]


def test_what_is_announced_wrongly_is_listed_and_said(site, capsys):
    install(site, "odd", "1", {"taste.sweet": "a:b", "pooling": "a:b", "head.many": "tl_extras.heads"})
    assert find_plugin("pooling", "median") is not None
    assert main(["plugins", "--check"]) == 0
    said = capsys.readouterr().out
    assert "taste 'sweet' of odd 1 cannot be used: it should be called KIND.NAME, a kind being pooling" in said
    assert "head 'many' of odd 1 should be a function (C, shape) -> a classifier" in said


def test_a_file_decides_no_import(site, network, tmp_path):
    fne = FullNetworkEmbedding(network, pool="median", progress=False).fit(pictures(4))
    folder = fne.save_pretrained(tmp_path / "fitted")
    loaded = FullNetworkEmbedding.from_pretrained(str(folder), pool="median").set_params(progress=False)
    assert np.array_equal(loaded.transform(pictures(2)), fne.set_params(progress=False).transform(pictures(2)))
    del sys.modules["tl_extras.poolings"]
    find_plugin.cache_clear()
    with pytest.raises(InputError, match=r"'median', which is not one of hf_tl's, .* give it yourself: pool='median'"):
        FullNetworkEmbedding.from_pretrained(str(folder))
    assert "tl_extras.poolings" not in sys.modules
    (site / "faulty.py").write_text("raise SystemExit('imported')")
    config = json.loads((folder / "embedding_config.json").read_text())
    for hostile in ("faulty:it", {"conv": "faulty:it"}, ["mean"], {"conv": 3}):
        (folder / "embedding_config.json").write_text(json.dumps({**config, "pool": hostile}))
        with pytest.raises(InputError, match=r"which is not one of hf_tl's|is damaged"):
            FullNetworkEmbedding.from_pretrained(str(folder))
    assert "faulty" not in sys.modules


MISBEHAVING = """
def flat(values, mask): return values.mean()
def number(argument, layers): return 3
def nonsense(argument, layers): return "freese: all"
def late(argument, layers): return "reinit: head"
def fails(argument, layers): return layers[999]
def nothing(C, shape): return object()
"""


def test_one_that_misbehaves_is_said(site, network):

    (site / "faulty.py").write_text(MISBEHAVING)
    found = layers()
    with pytest.raises(InputError, match=r"'faulty:flat' should give one number per sample and channel, \(\d+, \d+\)"):
        FullNetworkEmbedding(network, pool="faulty:flat", progress=False).fit(pictures(4))
    with pytest.raises(InputError, match="head 'faulty:nothing' should make a classifier with fit, predict and score"):
        make_head("faulty:nothing", (3, 3))
    for action, sentence in {
        "number": "should give the text of clauses, got int",
        "nonsense": "made of 'x' what is no policy: a policy has no action 'freese'",
        "fails": "failed on 'x': IndexError",
    }.items():
        with pytest.raises(InputError, match=f"action 'faulty:{action}' {sentence}"):
            Policy(f"faulty:{action}: x").plan(found)
    with pytest.raises(InputError, match="phase '0' reinitialises, which happens once"):
        Policy("", [("0", "faulty:late: x")]).plan(found)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_snippets_of_the_page_run(site, tmp_path, capsys):
    snippets = [
        text.replace("their_package", "faulty") for text in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    ]
    assert len(snippets) == 4
    (site / "faulty.py").write_text("\n".join(snippets[:3]))
    names = {}
    exec(snippets[3], names)
    printed = capsys.readouterr().out
    assert printed.startswith("True")
    assert type(names["head"]).__name__ == "NearestCentroid"


def test_the_page_announces_as_a_package_does():
    announced = tomllib.loads(re.search(r"```toml\n(.*?)```", DOCS, re.DOTALL)[1])
    assert {name.partition(".")[0] for name in announced["project"]["entry-points"][GROUP]} == set(plugins.KINDS)


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::UserWarning")  # NearestCentroid, of flat features
def test_a_learning_curve_takes_one(site):
    generator = np.random.default_rng(0)

    class Rows:
        labels = np.arange(60) % 3
        values = generator.standard_normal((60, 5)) + 3 * np.eye(5)[np.arange(60) % 3]

    curve = learning_curve(Rows(), head="centroid", shots=(1, 5), n_splits=2, progress=False)
    assert curve.shots == (1, 5)
    assert curve.accuracy["full network"].min() > 0.5
