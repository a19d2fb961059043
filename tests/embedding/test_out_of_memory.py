"""What does not fit into memory or into one run: flat memory, stops and starts, several processes."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from one_pass import BATCH, Drawn, contents, embedding, rows, small_model

from hf_tl import Embedding, InputError
from hf_tl.embedding import RECIPES
from hf_tl.embedding.store import Store


SCRIPT = Path(__file__).parent / "one_pass.py"


def test_a_pass_to_disk_gives_what_a_pass_in_memory_gives(tmp_path):
    fne = embedding(small_model())
    memory, disk = fne.fit_transform(rows(21)), embedding(small_model()).fit_transform(rows(21), out=tmp_path / "a")
    assert np.array_equal(memory, disk)
    assert memory.layers == disk.layers
    assert memory.labels.tolist() == disk.labels.tolist()
    assert np.array_equal(fne.transform(rows(9)), fne.transform(rows(9), out=tmp_path / "b"))
    raw = Embedding.load(tmp_path / "a", values="raw")
    assert np.array_equal(raw, embedding(small_model(), recipe="raw").activations(rows(21)))
    assert np.array_equal(embedding(None).fit_transform(raw), memory)
    assert np.array_equal(embedding(None).fit_transform(raw, out=tmp_path / "c"), memory)


def test_workers_give_the_same_rows(tmp_path):
    alone = embedding(small_model()).fit_transform(rows(20))
    assert np.array_equal(embedding(small_model(), num_workers=2).fit_transform(rows(20)), alone)


def test_features_without_raw_activations(tmp_path):
    fne = embedding(small_model())
    made = fne.fit_transform(rows(20), out=tmp_path, keep_raw=False)
    assert not (tmp_path / "raw.f32").exists()
    before = contents(tmp_path)
    again = embedding(small_model()).fit_transform(rows(20), out=tmp_path, keep_raw=False)
    assert np.array_equal(made, again)
    assert contents(tmp_path) == before
    with pytest.raises(InputError, match="features of another recipe, and its raw activations were dropped"):
        embedding(small_model(), recipe="standardize").fit_transform(rows(20), out=tmp_path)
    with pytest.raises(InputError, match="holds no raw"):
        Embedding.load(tmp_path, values="raw")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("recipe", ["standardize", replace(RECIPES["paper"], thresholds=(-0.1, 0.1))])
def test_another_recipe_needs_no_second_pass(tmp_path, recipe):
    log = tmp_path / "log"
    embedding(small_model(), log=log).fit_transform(rows(24), out=tmp_path / "out")
    assert log.stat().st_size == 3
    again = embedding(small_model(), log=log, recipe=recipe).fit_transform(rows(24), out=tmp_path / "out")
    assert log.stat().st_size == 3  # whole batches: four samples are held against the rows that are there
    assert np.array_equal(again, embedding(small_model(), recipe=recipe).fit_transform(rows(24)))


def other_model():
    model = small_model()
    model[0].weight.data[0, 0, 0, 0] += 1e-6
    return model


class Reversed(Drawn):
    def __getitem__(self, index):
        return super().__getitem__(len(self) - 1 - index)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda: embedding(other_model()).fit_transform, "weights"),
        (lambda: embedding(small_model(), taps="conv").fit_transform, "taps"),
        (lambda: embedding(small_model(), pool="max").fit_transform, "taps"),
        (lambda: embedding(small_model(), recipe="fne-package").fit_transform, "taps"),
        (lambda: embedding(small_model(), dtype="bfloat16").fit_transform, "dtype"),
    ],
)
def test_a_folder_of_another_making_is_refused_by_name(tmp_path, change, key):
    embedding(small_model()).fit_transform(rows(10), out=tmp_path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=f"made of other {key}; nothing was changed"):
        change()(rows(10), out=tmp_path)
    assert contents(tmp_path) == before


def test_other_rows_and_another_preparation_are_refused_by_name(tmp_path):
    data = rows(10)
    embedding(small_model()).fit_transform(data, out=tmp_path)
    with pytest.raises(InputError, match="made of other dataset, preprocessing; nothing"):
        embedding(small_model()).fit_transform(Reversed(data.dataset, "input", data.labels), out=tmp_path)
    with pytest.raises(InputError, match="made of other dataset; nothing"):
        embedding(small_model()).fit_transform(replace(data, labels=data.labels + 1), out=tmp_path)
    fne = embedding(small_model())
    fne.set_params(network=replace(fne.network, prepare=lambda batch: torch.stack(batch) / 2))
    with pytest.raises(InputError, match="made of other preprocessing; nothing"):
        fne.fit_transform(data, out=tmp_path)


def test_damaged_rows_are_read_again(tmp_path):
    log = tmp_path / "log"
    embedding(small_model(), log=log).fit_transform(rows(32), out=tmp_path / "out")
    before = contents(tmp_path / "out")
    with open(tmp_path / "out" / "raw.f32", "r+b") as file:
        file.seek(11 * 72 * 4)
        file.write(b"damage")
    n = log.stat().st_size
    embedding(small_model(), log=log).fit_transform(rows(32), out=tmp_path / "out")
    assert log.stat().st_size == n + 1  # the batch of that row
    assert contents(tmp_path / "out") == before


def test_an_unfinished_folder_is_not_loaded(tmp_path):
    class Broken(Drawn):
        def __getitem__(self, index):
            if index == 17:
                raise OSError("truncated")
            return super().__getitem__(index)

    data = Broken(rows(24).dataset, "input", rows(24).labels)
    with pytest.raises(InputError, match="sample 17 of samples cannot be read"):
        embedding(small_model()).fit_transform(data, out=tmp_path)
    with pytest.raises(InputError, match="not finished: 8 of 24 samples are missing; repeat the command"):
        Embedding.load(tmp_path)
    made = embedding(small_model(), on_bad_samples="skip").fit_transform(data, out=tmp_path)
    assert made.indices.tolist() == [row for row in range(24) if row != 17]
    assert made.labels.tolist() == [row % 3 for row in made.indices]


N_KILLED_SAMPLES = 200


def slow_pass(out, log=None):
    return embedding(small_model(), log=log, seconds=0.01).fit_transform(rows(N_KILLED_SAMPLES), out=out)


def start(out, log):
    """The pass in a forked process: its id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            slow_pass(out, log)
            status = 0
        finally:
            os._exit(status)
    return child


def kill_after(child, log, batches):
    """Kills the pass once it has prepared so many more batches; whether it was still running."""
    wanted = (log.stat().st_size if log.exists() else 0) + batches
    while (log.stat().st_size if log.exists() else 0) < wanted:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_kills_at_any_batch_leave_the_store_of_a_straight_run(tmp_path):
    torch.set_num_threads(1)  # a forked process has one thread
    straight = tmp_path / "straight"
    slow_pass(straight)
    n_done, n_prepared = [], set()
    for repeat, moments in enumerate([(0, 1, 6, 3, 2), (1, 1, 1, 9, 5), (12, 0, 0, 4, 1)]):  # batches between kills
        out, log = tmp_path / str(repeat), tmp_path / f"{repeat}.log"
        for batches in moments:
            assert kill_after(start(out, log), log, batches)
            n_prepared.add(log.stat().st_size if log.exists() else 0)
            n_done.append(int((Store.open(out).sums != 0).sum()) if (out / "embedding.json").exists() else 0)
        assert os.waitpid(start(out, log), 0)[1] == 0
        assert contents(out) == contents(straight)
        lost = log.stat().st_size - N_KILLED_SAMPLES // BATCH
        assert 0 <= lost <= 2 * len(moments)  # each kill lost the batch that was read and the next one, at most
    print(f"\n{len(n_done)} kills, with {n_done} of {N_KILLED_SAMPLES} samples done")
    assert len(n_prepared) > 5  # whatever of that was stored when it was killed
    assert any(0 < n < N_KILLED_SAMPLES for n in n_done)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows_and_a_row_takes_3_kilobytes(tmp_path, processes):
    sizes = (500, 2500)  # whose raw activations differ by 99 MiB
    (ended,) = processes.succeed(SCRIPT, "peak", tmp_path, *sizes)
    for n in sizes:
        assert (tmp_path / str(n) / "features.bin").stat().st_size == n * 3104
        assert not (tmp_path / str(n) / "raw.f32").exists()
    few, many = (int(line) / 1024 for line in ended.out.split())
    print(f"\npeak memory: {few:.0f} MiB for 500 samples, {many:.0f} MiB for 2,500")
    assert many - few < 50


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_write_what_one_writes(tmp_path, processes):
    sizes = (11, 64, 1001)
    processes.succeed(SCRIPT, tmp_path, *sizes, ranks=2)
    assert json.loads((tmp_path / "world.json").read_text()) == 2
    assert [json.loads((tmp_path / f"grouped-{rank}.json").read_text()) for rank in (0, 1)] == [False, False]
    for size in sizes:
        alone = embedding(small_model()).fit_transform(rows(size), out=tmp_path / f"alone-{size}")
        both = Embedding.load(tmp_path / str(size))
        mismatch = float((np.asarray(alone) != np.asarray(both)).mean())
        print(f"\n{size} rows: {mismatch:.1e} of {np.asarray(alone).size:,} ternary values differ")
        assert mismatch <= 1e-6
        a, b = contents(tmp_path / f"alone-{size}"), contents(tmp_path / str(size))
        assert sorted(a) == sorted(b)
        for name in ("raw.f32", "raw.crc", "index.safetensors"):
            assert a[name] == b[name]
        assert both.labels.tolist() == alone.labels.tolist()


def test_a_share_may_be_empty():
    from hf_tl.embedding.batches import Processes

    shares = [Processes(rank, 3).share(range(2)) for rank in range(3)]
    assert sorted(i for share in shares for i in share) == [0, 1]
    assert any(len(share) == 0 for share in shares)
