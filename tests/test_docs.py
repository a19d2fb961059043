"""README.md and docs/ do what they say: snippets and commands run, links lead somewhere, figures name their command.

Every page is found by itself. A snippet runs alone in a fresh folder; one that is fenced "```python continued" goes on
where the one above it ended. What a page calls by name (a network, a dataset) is put there by the fixtures of NEEDS.
"""

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import write_images
from peft_zoo import randomise, tiny_bert

from hf_tl.cli.main import COMMANDS, build_parser, main


ROOT = Path(__file__).parent.parent
PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
NEEDS = {  # page -> fixtures that put what it names into the working folder
    "analysis.md": ("vision_network", "photos"),
    "README.md": ("vision_network", "photos"),
    "classifier.md": ("vision_network", "photos", "tables"),
    "embedding.md": ("vision_network", "photos"),
    "large-models.md": ("language_network",),
    "lora.md": ("base_and_adapter",),
    "probes.md": ("vision_network", "photos", "stored_embedding"),
}
ELSEWHERE = {  # pages that take a server, or a package of somebody else's -> the test that runs their snippets
    "dropin.md": "test_docs_dropin.py",
    "hub.md": "hub/test_docs_hub.py",
    "plugins.md": "test_plugins.py",
    "scale.md": "cluster/test_embed_on_ray.py",
}
HERE = [page for page in PAGES if page not in ELSEWHERE]
LARGEST_IMAGE = 300_000  # bytes


@dataclass(frozen=True)
class Snippet:
    """A python block of a page.

    Attributes:
        page: file name of the page.
        line: of the page, counted from 1, on which its code begins.
        code: its text.
        continued: whether it goes on where the block above ended.
    """

    page: str
    line: int
    code: str
    continued: bool

    def __str__(self):
        return f"{self.page}:{self.line}"


def blocks(page, language):
    """(line, info, text) of the fenced blocks of a language."""
    text = PAGES[page].read_text()
    for found in re.finditer(rf"^```{language}\b(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE):
        yield text.count("\n", 0, found.start(2)) + 1, found[1].strip(), found[2]


def snippets(page):
    return [Snippet(page, line, code, info == "continued") for line, info, code in blocks(page, "python")]


def commands(page):
    lines = [line for _, _, text in blocks(page, "bash") for line in text.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("hf-tl ")]


def run(snippet, names=None):
    """The names that it leaves; a traceback points at the line of the page."""
    names = {"__name__": "__main__"} if names is None else names
    padded = "\n" * (snippet.line - 1) + snippet.code
    exec(compile(padded, PAGES[snippet.page], "exec"), names)
    return names


@pytest.fixture(scope="session")
def saved_vision_network(tmp_path_factory):
    """A small MobileNetV2 as timm saves it."""
    import timm

    folder = tmp_path_factory.mktemp("documents") / "mobilenetv2"
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_035", num_classes=2)
    timm.models.save_for_hf(model, folder, model_config={"input_size": (3, 32, 32)}, safe_serialization=True)
    return folder


@pytest.fixture
def vision_network(here, saved_vision_network):
    shutil.copytree(saved_vision_network, here / "timm" / "mobilenetv2_100.ra_in1k")


@pytest.fixture
def photos(here):
    write_images(here / "beans")
    write_images(here / "beans", rows=3, split="test")
    shutil.copytree(here / "beans" / "test" / "dog", here / "new-photos")


@pytest.fixture
def tables(here, text_folder):
    """Texts with several classes, with numbers, and in pairs."""
    shutil.copytree(text_folder, here / "sentence-transformers" / "all-MiniLM-L6-v2")
    rows = [(f"the film was {'very ' * (i % 5)}{'good' if i % 2 else 'bad'}", i) for i in range(30)]
    posts = pd.DataFrame(
        [{"text": t, "sports": i % 2, "politics": i % 3 // 2, "science": i % 5 // 4} for t, i in rows]
    )
    stars = pd.DataFrame([{"text": t, "stars": 1 + i % 5} for t, i in rows])
    pairs = pd.DataFrame([{"question": t, "answer": f"{t} {i}", "label": i % 2} for t, i in rows])
    for name, table in (("posts", posts), ("reviews", stars), ("pairs", pairs)):
        table.to_csv(here / f"{name}.csv", index=False)


@pytest.fixture(scope="session")
def embedding_of_photos(saved_vision_network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    write_images(folder / "beans")
    write_images(folder / "beans", rows=3, split="test")
    assert main(["embed", str(saved_vision_network), str(folder / "beans"), "--out", str(folder / "runs")]) == 0
    return folder / "runs"


@pytest.fixture
def stored_embedding(here, embedding_of_photos):
    shutil.copytree(embedding_of_photos, here / "runs" / "beans")


@pytest.fixture
def base_and_adapter(here):
    from hf_tl import LoraConfig, add_lora, save_adapter

    tiny_bert().save_pretrained(here / "path/to/base")
    model = add_lora(tiny_bert(), LoraConfig(r=4, target_modules=["query"]))
    randomise(model)
    save_adapter(model, here / "path/to/adapter")


@pytest.fixture
def language_network(here):
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(here / "language_network")
    MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=2)).save_pretrained(here / "mixture")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def prepared(here, page, request):
    """A working folder with what the page names."""
    for fixture in NEEDS.get(page, ()):
        request.getfixturevalue(fixture)
    return here


def check_main_job(names, printed):
    assert set(names["train"].values.ravel()) <= {-1, 0, 1}
    assert str(names["train"].shape) in printed


def check_own_module(names, printed):
    assert names["embedding"].shape == (16, 8)


def check_selections(names, printed):
    code = next(s.code for s in snippets("README.md") if "select_layers(layers" in s.code)
    lists = [line.split("  # ") for line in code.splitlines() if line.startswith("[")]
    assert len(lists) == 2
    for expression, names_in_comment in lists:
        assert eval(expression, names) == names_in_comment.split(", ")


def check_new_adapter(names, printed):
    assert int(printed) == 2 * 2 * 2 * 8 * 32 + 3 * 32 + 3  # blocks, q and v, A and B, r, width; and the head
    assert Path("runs/adapter/adapter_config.json").is_file()


def check_upper_half(names, printed):
    from hf_tl.lora.adapted import record_of

    assert {name.split(".")[3] for name in record_of(names["model"]).layers if "layer." in name} == {"1"}


def check_trainer(names, printed):
    files = {path.name for path in Path("runs/trainer/checkpoint-4").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files


def check_merge(names, printed):
    layers, change = printed.split()
    assert int(layers) == 2
    assert float(change) < 1e-5


CHECKS = {  # what must hold after the snippet of that page in which these words are
    ("README.md", "LinearSVM"): check_main_job,
    ("README.md", "nn.Sequential"): check_own_module,
    ("README.md", "select_layers(layers"): check_selections,
    ("lora.md", "save_adapter("): check_new_adapter,
    ("lora.md", "layers="): check_upper_half,
    ("lora.md", "resume_from_checkpoint"): check_trainer,
    ("lora.md", "merge_adapter("): check_merge,
}
PRINTS = ("probes.md",)  # pages on which every snippet shows something


def chains(page):
    """The snippets of a page, each with those that continue it."""
    found = []
    for snippet in snippets(page):
        assert found or not snippet.continued, f"{snippet} continues nothing"
        found = [*found[:-1], (*found[-1], snippet)] if snippet.continued else [*found, (snippet,)]
    return found


# What takes seconds
SLOW = (".export(", "read_parquet", "learning_curve(", "layer_probes(", "Classifier.fit(", "load_task(")


def lane(chain):
    """README is for the fast lane, whatever it takes; of other pages what is quick."""
    slow = any(word in snippet.code for snippet in chain for word in SLOW)
    return pytest.mark.slow if slow and chain[0].page != "README.md" else ()


@pytest.mark.parametrize(
    ("page", "chain"),
    [pytest.param(p, chain, id=str(chain[0]), marks=lane(chain)) for p in HERE for chain in chains(p)],
)
def test_snippets_run(page, chain, prepared, capsys):
    names = None
    if "BitsAndBytesConfig" in chain[0].code:
        pytest.importorskip("bitsandbytes")
    for snippet in chain:
        names = run(snippet, names)
        printed = capsys.readouterr().out
        assert printed or page not in PRINTS
        for (where, words), check in CHECKS.items():
            if where == page and words in snippet.code:
                check(names, printed)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in HERE if commands(page)])
def test_commands_run(page, prepared, capsys):
    for command in commands(page):
        assert main(command[1:]) == 0, command
        printed = capsys.readouterr().out
        assert printed, command
        if page == "README.md":
            words = ("full network", "layers frozen", "; 2 classes", "predictions in")
            assert any(word in printed for word in words)


def test_pages_that_run_elsewhere_do():
    for page, test in ELSEWHERE.items():
        text = (ROOT / "tests" / test).read_text()
        assert f'"docs" / "{page}"' in text or f'snippets("{page}")' in text


def test_there_is_something_to_test():
    count = {page: (len(snippets(page)), len(commands(page))) for page in PAGES}
    assert count.keys() >= NEEDS.keys() | {page for page, _ in CHECKS} | set(PRINTS)
    least = {
        "README.md": (3, 2),
        "embedding.md": (6, 1),
        "lora.md": (6, 5),
        "policies.md": (5, 0),
        "probes.md": (4, 3),
    }
    for page, (n_snippets, n_commands) in least.items():
        assert count[page][0] >= n_snippets, page
        assert count[page][1] >= n_commands, page
    for page, words in CHECKS:
        assert sum(words in snippet.code for snippet in snippets(page)) == 1, (page, words)


def test_the_adapters_commands_are_those_of_help():
    lines = [line for _, _, text in blocks("lora.md", "bash") for line in text.splitlines()]
    assert [f"  {line}" for line in lines] == COMMANDS["adapter"].EXAMPLES.splitlines()


@pytest.mark.slow
def test_the_embeddings_command_goes_on_from_its_folder(here, vision_network, photos, capsys):
    command = commands("embedding.md")[0][1:]
    assert main(command) == 0
    before = {path: path.read_bytes() for path in Path("runs/raw").rglob("*") if path.is_file()}
    assert main(command) == 0
    assert before == {path: path.read_bytes() for path in Path("runs/raw").rglob("*") if path.is_file()}
    assert main([*command, "--recipe", "fne-package"]) == 2
    assert "made of other taps; nothing was changed" in capsys.readouterr().err


def test_every_clause_of_the_policies_table_is_one():
    from hf_tl.policies.grammar import parse_policy

    words = PAGES["policies.md"].read_text().split("## The grammar")[1].split("\n## ")[0]
    clauses = [clause for row in re.findall(r"^\| (`.*?`) \|", words, re.MULTILINE) for clause in row.split("`")[1::2]]
    assert len(clauses) >= 9
    for clause in clauses:
        assert len(parse_policy(clause)) == 1


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood_and_scripts_are_there(page):
    for command in commands(page):
        build_parser().parse_args(command[1:])
    prose = re.sub(r"^```.*?^```$", "", PAGES[page].read_text(), flags=re.MULTILINE | re.DOTALL)
    for command in re.findall(r"`hf-tl (\w+)[^`]*`", prose):
        assert command in COMMANDS
    for script in re.findall(r"python (\S+\.py)", PAGES[page].read_text()):
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_headings_and_small_images(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page].read_text()):
        if "://" in link:
            continue
        target, _, heading = link.partition("#")
        path = (PAGES[page].parent / target) if target else PAGES[page]
        assert path.exists(), f"{page} links {link}"
        assert path.suffix not in (".png", ".jpg") or path.stat().st_size < LARGEST_IMAGE, link
        assert not heading or heading in headings(path), f"{page} links {link}"


def headings(path):
    """The anchors that a page's headings have."""
    lines = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES)
def test_figures_name_the_command_that_printed_them(page):
    """A table with decimal fractions in its cells was measured; its section names a script that prints it."""
    text = PAGES[page].read_text()
    sections = re.split(r"^(?=##? )", text, flags=re.MULTILINE)
    for section in sections:
        rows = re.findall(r"^\|(.*)\|$", section, re.MULTILINE)
        cells = [cell.strip() for row in rows for cell in row.split("|")]
        if sum(bool(re.match(r"[-+~]?\d*\.\d+", cell)) for cell in cells) < 2:
            continue
        scripts = re.findall(r"`[^`]*python (recipes/\S+\.py)[^`]*`", section)
        assert scripts, f"{page}: a table of figures below {section.splitlines()[0]!r}, and no command"


def test_every_claim_of_the_comparison_has_its_evidence():
    """A test of ours or documentation of theirs, in each point; a test that is linked exists, see above."""
    text = PAGES["compared.md"].read_text()
    points = re.findall(r"^- .*(?:\n  .*)*", text, re.MULTILINE)
    assert len(points) >= 25
    for point in points:
        assert "](" in point, point
    ours = re.findall(r"^What hf_tl adds:\n(.*?)(?=^\[|^## )", text, re.MULTILINE | re.DOTALL)
    assert len(ours) == 5
    assert all("](../tests/" in part for part in ours)


def test_pictures_of_probes_are_shown():
    assert len(re.findall(r"\]\(images/[^)]+\)", PAGES["probes.md"].read_text())) >= 3


def test_the_figures_of_adapters_are_those_that_were_measured():
    """docs/lora.md beside recipes/benchmarks/results/lora.json, cell by cell."""
    results = json.loads((ROOT / "recipes/benchmarks/results/lora.json").read_text())["results"]
    once = {"inject": "add_lora", "load": "load_adapter", "state_dict": "state dict", "merge": "merging"}
    memory = {
        "dropout 0.1, float32": "float32, `lora_dropout=0.1`",
        "all linear, float32": "float32",
        "all linear, bfloat16 base": "bfloat16, adapters in float32",
        "all linear, bfloat16 autocast": "float32 under bfloat16 autocast",
        "DoRA, float32": "float32, `use_dora=True`",
    }
    rows = re.findall(r"^\| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", PAGES["lora.md"].read_text(), re.MULTILINE)
    table = {label: cells for label, *cells in rows}
    expected = {}
    for name, result in results["steps"].items():
        if name != "threads":
            expected[f"training step, {name}"] = (result["milliseconds"], result["ratio"]["median"])
    for name, words in once.items():
        label = next(label for label in table if words in label)
        expected[label] = (results["manage"][name]["milliseconds"], results["manage"][name]["faster_by"]["median"])
    for name, label in memory.items():
        result = next(r for n, r in results["memory"].items() if n.startswith("BERT-like") and n.endswith(name))
        expected[label] = (result["mebibytes"], result["ratio"])
    assert len(expected) == 14
    for label, (sides, ratio) in expected.items():
        theirs, ours = (s["median"] if isinstance(s, dict) else s for s in (sides["peft"], sides["hf_tl"]))
        written = [float(cell.split()[0]) for cell in table[label]]
        digits = 2 if "training" in label or label in memory.values() else 1
        assert written[0] == pytest.approx(theirs, abs=0.051 if theirs < 100 or label in memory.values() else 0.51)
        assert written[1] == pytest.approx(ours, abs=0.051 if ours < 100 or label in memory.values() else 0.51)
        assert written[2] == pytest.approx(ratio, abs=0.51 * 10**-digits)
