"""The drop-in matrix: a handful of its cells, and that it would see a pillar that does nothing.

The whole of it, official scripts and two processes included: `python recipes/benchmarks/dropin_matrix.py CHECKOUT...`.
"""

import ast
import json
import sys

import pytest
from dropin_cell import Watch
from dropin_matrix import OWN, judge, main
from dropin_scripts import OFFICIAL, PILLARS, SCRIPTS, added_lines, difference
from dropin_world import save_bert, write_texts


HERE = [script for script in SCRIPTS.values() if script not in OFFICIAL]


def text_of(script):
    return (OWN / f"{script.name}.py").read_text()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    save_bert(folder / "bert")
    write_texts(folder)
    return folder


@pytest.fixture
def cell(world, tmp_path, monkeypatch):
    """Runs a script with a pillar in this process; what the watch saw, as the matrix reads it."""

    def run(name, pillar):
        import hf_tl
        from hf_tl.policies.applied import AppliedPolicy
        from hf_tl.probes.embedding_callback import EmbeddingCallback

        seen = Watch()
        start, add_lora, measure = AppliedPolicy.start, hf_tl.add_lora, EmbeddingCallback.measure

        def started(applied, **options):
            start(applied, **options)
            seen.keep(applied.model)

        def added(model, config):
            seen.keep(add_lora(model, config))
            return model

        def measured(callback, model):
            seen.measured.append(measure(callback, model))
            return seen.measured[-1]

        monkeypatch.setattr(AppliedPolicy, "start", started)
        monkeypatch.setattr(hf_tl, "add_lora", added)
        monkeypatch.setattr(EmbeddingCallback, "measure", measured)
        for thing in world.iterdir():
            (tmp_path / thing.name).symlink_to(thing)
        monkeypatch.chdir(tmp_path)
        code, error = SCRIPTS[name].patched(text_of(SCRIPTS[name]), pillar), None
        try:
            exec(compile(code, name, "exec"), {"__name__": "__main__"})
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        return {"processes": 1, "error": error, **seen.report()}

    return run


CELLS = [(name, pillar) for name in ("own_trainer", "late_callback", "model_init") for pillar in PILLARS]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "pillar"), CELLS)
def test_cells_are_as_they_should_be(name, pillar, cell):
    rank = cell(name, pillar)
    expected = "refused" if pillar in SCRIPTS[name].refused else "green"
    assert judge(SCRIPTS[name], pillar, 1, [rank]) == expected


def test_a_pillar_that_does_nothing_is_seen(cell):
    assert "frozen" in judge(SCRIPTS["own_trainer"], "policy", 1, [cell("own_trainer", "none")])


def test_what_is_wrong_is_not_green():
    good = {"processes": 2, "error": None, "frozen": 3, "frozen that moved": [], "tuned that moved": 2, "digest": "a"}
    script = SCRIPTS["run_glue"]
    assert judge(script, "lora", 2, [good, good]) == "green"
    assert judge(script, "lora", 2, [good]) != "green"
    assert judge(script, "lora", 2, [good | {"processes": 1}, good]) != "green"  # each was alone
    assert judge(script, "lora", 2, [good, good | {"digest": "b"}]) != "green"
    assert judge(script, "lora", 2, [good, good | {"frozen that moved": ["w"]}]) != "green"
    assert judge(script, "lora", 2, [good, good | {"tuned that moved": 0}]) != "green"
    assert judge(script, "lora", 2, [good, good | {"error": "RuntimeError: no"}]) == "RuntimeError: no"
    assert judge(script, "embedding", 2, [good | {"measured": []}] * 2) != "green"


@pytest.mark.parametrize("script", HERE, ids=lambda script: script.name)
@pytest.mark.parametrize("pillar", PILLARS)
def test_two_lines_are_added_and_none_is_changed(script, pillar):
    before = text_of(script)
    after = script.patched(before, pillar)
    ast.parse(after)
    assert added_lines(difference(before, after, script.name)) == 2
    with pytest.raises(ValueError, match="changed"):
        added_lines(difference(before, after.replace("def main():", "def other():"), script.name))


def test_another_version_of_a_script_is_named():
    with pytest.raises(ValueError, match="run_glue has no line that starts with"):
        SCRIPTS["run_glue"].patched("print()\n", "policy")


@pytest.mark.dist
@pytest.mark.slow
def test_the_command_runs_two_processes(tmp_path, monkeypatch, capsys):
    """Forked as `accelerate launch` would start them, which recipes/test_recipes.py does."""
    monkeypatch.chdir(tmp_path)
    words = ["--scripts", "own_trainer", "--pillars", "lora", "--processes", "2", "--launcher", "fork"]
    monkeypatch.setattr(sys, "argv", ["dropin_matrix.py", *words, "--ledger", str(tmp_path / "ledger.jsonl")])
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr().out
    assert stop.value.code == 0, printed[-3000:]
    assert "+2: green" in printed
    assert "1 of 1 cells as they should be" in printed
    (kept,) = map(json.loads, (tmp_path / "ledger.jsonl").read_text().splitlines())
    assert kept["saved as an adapter"]
