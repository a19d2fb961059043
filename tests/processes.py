"""Processes for tests that need some of their own, forked from one that has imported what takes long and run nothing.

A script runs as `python SCRIPT WORDS...` would run it: as __main__, in the environment of a rank, to the end of its
interpreter. That torchrun and accelerate start such processes is tested where recipes are.
"""

import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path


ROOT = Path(__file__).parent.parent
SLOW = (
    "hf_tl.cli.probe",
    "hf_tl.embedding.full_network",
    "hf_tl.lora.inject",
    "hf_tl.policies.policy_callback",
    "sklearn.neighbors",
    "sklearn.svm",
    "transformers.models.bert.modeling_bert",
    "transformers.trainer",
)


@dataclass(frozen=True)
class Ended:
    """What became of a process: its exit code, and what it said."""

    code: int
    out: str
    err: str


class Processes:
    """Starts them; a context, after which none is left."""

    def __enter__(self):
        paths = [
            ROOT,
            ROOT / "tests",
            *(os.environ["PYTHONPATH"].split(os.pathsep) if "PYTHONPATH" in os.environ else ()),
        ]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
        self.parent = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *_):
        self.parent.stdin.close()
        self.parent.wait()

    def run(self, *words, ranks: int = 1, seconds: float = 200) -> list[Ended]:
        """Runs a script, or "-m" and a module, in so many processes that find each other; all of them ended well."""
        order = {"words": [*map(str, words)], "ranks": ranks, "seconds": seconds, "folder": os.getcwd()}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            order["port"] = free.getsockname()[1]
        print(json.dumps(order), file=self.parent.stdin, flush=True)
        return [Ended(**found) for found in json.loads(self.parent.stdout.readline())]

    def succeed(self, *words, ranks: int = 1) -> list[Ended]:
        """The same, where all of them should end well."""
        found = self.run(*words, ranks=ranks)
        assert [ended.code for ended in found] == [0] * ranks, "\n".join(ended.err[-3000:] for ended in found)
        return found


def serve() -> tuple[dict, int] | None:
    """Answers orders until there are no more; in a forked process, the order and its rank."""
    for line in sys.stdin:
        order = json.loads(line)
        children, said = [], []
        for rank in range(order["ranks"]):
            said.append([tempfile.TemporaryFile(), tempfile.TemporaryFile()])  # noqa: SIM115  # closed when read
            children.append(os.fork())
            if children[-1] == 0:
                for descriptor, file in enumerate(said[-1], 1):
                    os.dup2(file.fileno(), descriptor)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                return order, rank
        codes = wait(children, order["seconds"])
        for files in said:
            for file in files:
                file.seek(0)
        texts = [[file.read().decode() for file in files] for files in said]
        found = [{"code": c, "out": out, "err": err} for c, (out, err) in zip(codes, texts, strict=True)]
        print(json.dumps(found), flush=True)
    return None


def wait(children: list[int], seconds: float) -> list[int]:
    """Their exit codes; where one fails or time is up, the others are killed."""
    codes: dict[int, int] = {}
    stop = time.monotonic() + seconds
    while len(codes) < len(children):
        for child in children:
            if child not in codes and (ended := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(ended[1])
        if any(codes.values()) or time.monotonic() > stop:
            for child in set(children) - set(codes):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[child] for child in children]


def main() -> None:
    for name in SLOW:
        import_module(name)
    if (found := serve()) is None:
        return
    order, rank = found
    if order["ranks"] > 1:
        environment = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": order["ranks"],
            "LOCAL_WORLD_SIZE": order["ranks"],
        }
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": order["port"], "ACCELERATE_USE_CPU": "true"}
        os.environ |= {name: str(value) for name, value in environment.items()}
    os.chdir(order["folder"])
    if order["words"][0] == "-m":
        sys.argv = order["words"][1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = order["words"]
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
