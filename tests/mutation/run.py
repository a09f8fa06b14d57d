"""Mutation testing: change one place of a module at a time and count how often its quick tests notice.

Run it from the root of a checkout with the test tools installed (POSIX only, because it forks):

    .venv/bin/python tests/mutation/run.py                                  # every mutant of every module; about an hour
    .venv/bin/python tests/mutation/run.py --module metrics heads           # of two modules
    .venv/bin/python tests/mutation/run.py --sample 40 --seed 1             # 40 random mutants per module
    .venv/bin/python tests/mutation/run.py --list                           # print the mutants and run nothing

It prints each survivor, then a table, and exits with status 1 if a module's tests kill less than ``--require`` of its
mutants. A mutant is killed if a test fails or the tests exceed a time limit.

The checkout is never written to: a temporary copy of the package is mutated and comes first on the import path. Each mutant
runs in a fork of this process, which has imported the heavy libraries but nothing of oodbench, so a mutant takes a few
seconds. pytest does not collect this file. The machine should be quiet enough that tests take less than four times as long
as in the first, unchanged run.
"""

import argparse
import ast
import compileall
import importlib
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode

from ignored import IGNORED

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Target:
    """A source file and the quick tests that guard it."""

    source: str
    module: str
    tests: tuple[str, ...]


TARGETS = {
    "metrics": Target("bench/metrics/__init__.py", "oodbench.metrics", ("tests/bench/test_metrics.py",)),
    "ranks": Target("bench/metrics/ranks.py", "oodbench.metrics.ranks", ("tests/bench/test_metrics.py",)),
    "protocols": Target("bench/protocols.py", "oodbench.protocols", ("tests/bench/test_protocols.py",)),
    "heads": Target("bench/heads.py", "oodbench.heads", ("tests/detectors/test_logistic.py", "tests/bench/test_heads.py")),
    "records": Target("bench/results/records.py", "oodbench.results.records", ("tests/results/test_records.py",)),
    "thresholds": Target(
        "bench/inference/thresholds.py", "oodbench.inference.thresholds", ("tests/inference/test_thresholds.py",)
    ),
}


# Imported once, before forking.
WARM = (
    "hypothesis", "numpy", "pandas", "PIL.Image", "pydantic", "pytest", "requests", "safetensors.torch", "scipy.special",
    "scipy.stats", "sklearn.covariance", "sklearn.datasets", "sklearn.linear_model", "sklearn.metrics",
    "sklearn.model_selection", "threadpoolctl", "torch", "torch.nn", "torchvision",
)  # fmt: skip

MEMORY = 6 * 2**30  # bytes of data that a mutant may allocate
WRONG_FILE = 90  # exit status of a fork that imported another file than the mutated one
TIMED_OUT = -1

COMPARISONS = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: (r"is\s+not", "is"), ast.In: ("in", "not in"),
    ast.NotIn: (r"not\s+in", "in"),
}  # fmt: skip
OPERATORS = {
    ast.Add: (r"\+", "-"), ast.Sub: ("-", "+"), ast.Mult: (r"\*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*"),
    ast.Pow: (r"\*\*", "*"), ast.BitAnd: ("&", "|"), ast.BitOr: (r"\|", "&"),
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "argmin": "argmax", "argmax": "argmin", "any": "all", "all": "any"}
EXACT_NEGATIONS = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)  # their mutants are negations already


@dataclass(frozen=True)
class Mutant:
    """A source file with one place changed."""

    line: int
    before: str  # the line where the change begins
    after: str
    text: bytes


class Source:
    """A parsed file whose nodes can be replaced by text. Offsets count bytes, as in ``ast``."""

    def __init__(self, text: bytes) -> None:
        self.text, self.tree = text, ast.parse(text)
        self.starts = [0]
        for line in text.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def start(self, node: ast.expr | ast.stmt) -> int:
        return self.starts[node.lineno - 1] + node.col_offset

    def end(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.starts[node.end_lineno - 1] + node.end_col_offset

    def replace(self, start: int, end: int, new: str) -> Mutant:
        text = self.text[:start] + new.encode() + self.text[end:]
        number = self.text.count(b"\n", 0, start)
        before, after = (whole.splitlines()[number].decode().strip() for whole in (self.text, text))
        return Mutant(number + 1, before, after, text)

    def between(self, left: int, right: int, pattern: str, new: str) -> Mutant:
        """Replace an operator, which ``ast`` does not locate, between its operands; brackets and comments may surround it."""
        gap = re.sub(rb"#[^\n]*", lambda comment: b" " * len(comment[0]), self.text[left:right])
        found = re.search(pattern.encode(), gap)
        assert found, f"no {pattern} in {gap!r}"
        return self.replace(left + found.start(), left + found.end(), new)

    def mutants(self) -> list[Mutant]:
        """One of each changed text, in the order of the file."""
        found = {mutant.text: mutant for node in meaningful(self.tree) for mutant in self.of(node)}
        for text in found:
            ast.parse(text)  # a mutant that cannot run would count as killed
        return sorted(found.values(), key=lambda mutant: mutant.line)

    def of(self, node: ast.AST) -> Iterator[Mutant]:
        match node:
            case ast.Compare():
                operands = [node.left, *node.comparators]
                for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
                    yield self.between(self.end(left), self.start(right), *COMPARISONS[type(operator)])
            case ast.BinOp(op=op) if type(op) in OPERATORS:
                yield self.between(self.end(node.left), self.start(node.right), *OPERATORS[type(op)])
            case ast.AugAssign(op=op) if type(op) in OPERATORS:
                yield self.between(self.end(node.target), self.start(node.value), *OPERATORS[type(op)])
            case ast.BoolOp():
                old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
                for left, right in zip(node.values, node.values[1:], strict=False):
                    yield self.between(self.end(left), self.start(right), rf"\b{old}\b", new)
            case ast.UnaryOp():  # drop the operator
                length = len("not") if isinstance(node.op, ast.Not) else 1
                yield self.replace(self.start(node), self.start(node) + length, "")
            case ast.Name(id=name) if name in NAMES:
                yield self.replace(self.start(node), self.end(node), NAMES[name])
            case ast.Attribute(attr=name) if name in NAMES:
                yield self.replace(self.end(node) - len(name), self.end(node), NAMES[name])
            case ast.Constant(value=bool(value)):
                yield self.replace(self.start(node), self.end(node), str(not value))
            case ast.Constant(value=int(value)):
                for new in (value + 1, value - 1):
                    yield self.replace(self.start(node), self.end(node), str(new) if new >= 0 else f"({new})")
            case ast.Constant(value=float(value)):
                yield self.replace(self.start(node), self.end(node), str(2 * value if value else 1.0))
            case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test) | ast.Assert(test=test):
                yield from self.negated(test)
            case ast.comprehension(ifs=tests):
                for test in tests:
                    yield from self.negated(test)
            case ast.Raise():
                yield self.replace(self.start(node), self.end(node), "pass")

    def negated(self, test: ast.expr) -> Iterator[Mutant]:
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            return  # dropping ``not`` is the same
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], EXACT_NEGATIONS):
            return
        start, end = self.start(test), self.end(test)
        yield self.replace(start, end, f"(not ({self.text[start:end].decode()}))")


def meaningful(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but annotations, what errors say, f-strings and what only type checkers read."""
    skipped: list[ast.AST | None] = []
    match node:
        case ast.JoinedStr():
            return
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return
        case ast.Raise():
            yield node
            return
        case ast.AnnAssign() | ast.arg():
            skipped = [node.annotation]
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            skipped = [node.returns]
    yield node
    for child in ast.iter_child_nodes(node):
        if child not in skipped:
            yield from meaningful(child)


def code(line: str) -> str:
    return line.split("  #")[0]


def mutants_of(target: Target) -> list[Mutant]:
    """Exits if a line of IGNORED is no longer there: its reason then needs another look."""
    found = Source((ROOT / target.source).read_bytes()).mutants()
    for entry in IGNORED:
        if entry.source == target.source:
            kept = [m for m in found if code(m.before) != entry.line or entry.mutated not in (None, code(m.after))]
            if len(kept) == len(found):
                sys.exit(f"{entry.source} has no mutant of {entry.line!r} to ignore; correct tests/mutation/ignored.py")
            found = kept
    return found


def copied_package(temporary: Path) -> Path:
    """The package as an installed one has it, with compiled files that notice any change of their source."""
    package = temporary / "oodbench"
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "bench", package, ignore=without)
    for part in ("detectors", "datasets", "leaderboard"):
        shutil.copytree(ROOT / part, package / part, ignore=without)
    compileall.compile_dir(package, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
    return package


def tested(target: Target, mutated: Path, temporary: Path, limit: float) -> tuple[int, float]:
    """Exit status of pytest (or TIMED_OUT) and seconds; what it printed is in ``temporary / "output"``."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            output = os.open(temporary / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            import pytest

            options = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={temporary / 'pytest'}"]
            status = int(pytest.main([*options, *target.tests]))
            loaded = sys.modules.get(target.module)
            if (status == 0 and loaded is None) or (loaded is not None and Path(loaded.__file__ or "") != mutated):
                status = WRONG_FILE
            sys.stdout.flush()
        finally:
            os._exit(status)
    done, status = 0, 0
    try:
        while not done and time.monotonic() < began + limit:
            time.sleep(0.01)
            done, status = os.waitpid(child, os.WNOHANG)
    finally:  # out of time, or interrupted
        if not done:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if done else TIMED_OUT, time.monotonic() - began


def counts(target: Target, mutants: list[Mutant], temporary: Path, package: Path) -> tuple[int, int]:
    """Killed mutants, and those among them that ran out of time. Prints survivors as it finds them.

    Exits if the tests fail without any change.
    """
    mutated = package / Path(target.source).relative_to("bench")
    original = mutated.read_bytes()
    status, seconds = tested(target, mutated, temporary, 600)
    if status:
        sys.exit(f"{target.source}: its tests fail without any change (status {status})\n{(temporary / 'output').read_text()}")
    limit = 4 * seconds + 10
    print(f"{target.source}: {len(mutants)} mutants, {seconds:.1f} s without any change", flush=True)
    killed = late = 0
    try:
        for mutant in mutants:
            mutated.write_bytes(mutant.text)
            status, _ = tested(target, mutated, temporary, limit)
            if status == WRONG_FILE:
                sys.exit(f"{target.source}: the tests did not import {mutated}")
            killed += status != 0
            late += status == TIMED_OUT
            if status == 0:
                print(f"{target.source}:{mutant.line}\n  - {mutant.before}\n  + {mutant.after}", flush=True)
    finally:
        mutated.write_bytes(original)
    return killed, late


def main() -> int:
    parser = argparse.ArgumentParser(description="Mutation testing of the modules that decide the figures.")
    parser.add_argument("--module", nargs="+", choices=TARGETS, default=list(TARGETS), help="modules to mutate; default: all")
    parser.add_argument("--sample", type=int, help="take N random mutants per module; default: all", metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--require", type=float, default=0.9, help="smallest share of killed mutants; default: 0.9")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    options = parser.parse_args()
    chosen = {}
    for name in options.module:
        mutants = mutants_of(TARGETS[name])
        if options.sample is not None and options.sample < len(mutants):
            mutants = sorted(random.Random(options.seed).sample(mutants, options.sample), key=lambda mutant: mutant.line)
        chosen[name] = mutants
    if options.list:
        for name, mutants in chosen.items():
            for mutant in mutants:
                print(f"{TARGETS[name].source}:{mutant.line}\n  - {mutant.before}\n  + {mutant.after}")
        return 0

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that temporary files go
    os.chdir(ROOT)
    os.environ.update({f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")})
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    for name in WARM:
        importlib.import_module(name)
    import hypothesis

    hypothesis.settings.register_profile("mutation", derandomize=True, database=None)
    hypothesis.settings.load_profile("mutation")
    rows = []
    with tempfile.TemporaryDirectory(prefix="oodbench-mutation-") as folder:
        temporary = Path(folder).resolve()
        package = copied_package(temporary)
        sys.path.insert(0, str(temporary))  # before the editable installation
        os.environ["PYTHONPATH"] = str(temporary)
        for name, mutants in chosen.items():
            rows.append((name, len(mutants), *counts(TARGETS[name], mutants, temporary, package)))
    print(f"\n{'module':<12}{'mutants':>8}{'killed':>8}{'share':>8}   of these by time-out")
    for name, count, killed, late in rows:
        print(f"{name:<12}{count:>8}{killed:>8}{killed / max(1, count):>8.1%}{late:>8}")
    return int(any(killed < options.require * count for _, count, killed, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
