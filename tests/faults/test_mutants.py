"""The power-loss suite finds what it is there to find: the product with one of its precautions taken out breaks a promise."""

import logging
import multiprocessing
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from conftest import Report

import seresnet

HERE = Path(__file__).parent
SOURCE = Path(seresnet.__file__).parent
# Forked: torch is there already. The child throws our modules away and loads the mutated ones.
PROCESSES = multiprocessing.get_context("fork")
LIMIT_S = 240


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A precaution, and the exact text without it. Text that is no longer there fails the test: rewrite the mutant."""

    name: str
    file: str
    edits: Sequence[tuple[str, str]]


MUTANTS = [
    Mutant(name="no flush", file="durable.py", edits=[("        file.flush()\n", "")]),
    Mutant(name="no file fsync", file="durable.py", edits=[("        files.sync(file)\n", "")]),
    Mutant(name="no folder fsync", file="durable.py", edits=[("        raise\n    files.sync_folder(path.parent)\n", "        raise\n")]),
    Mutant(
        name="durable reported early",
        file="checkpoint_writer.py",
        edits=[
            (
                "            name = self._commit(save)\n",
                "            self.durable_step = save.state.step\n            name = self._commit(save)\n",
            )
        ],
    ),
    Mutant(
        name="old deleted before commit",
        file="checkpoint_writer.py",
        edits=[("            name = self._commit(save)\n", "            self._delete(last=2)\n            name = self._commit(save)\n")],
    ),
    Mutant(
        name="no digest check",
        file="checkpoint_files.py",
        edits=[("    if digest_of(payload) != name.digest:\n        return None\n", "")],
    ),
    Mutant(name="shared temp name", file="durable.py", edits=[(".{secrets.token_hex(6)}.tmp", ".tmp")]),
    Mutant(
        name="no generation check",
        file="claims.py",
        edits=[("    if newest > generation:\n        raise Owned", "    if False:\n        raise Owned")],
    ),
]
#: More than the issue asks for: what else the promises rest on.
MORE = [
    Mutant(
        name="a file under another step's name is taken",
        file="checkpoint_files.py",
        edits=[("return payload if (header.generation, header.step) == (name.generation, name.step) else None", "return payload")],
    ),
    Mutant(
        name="a claim's name is not synced",
        file="attempts.py",
        edits=[("        _sync_if_possible(path.parent, files)\n", "        pass\n")],
    ),
    Mutant(name="a journal's name is not synced", file="journal.py", edits=[("    files.sync_folder(path.parent)\n", "")]),
    Mutant(name="a base goes at once", file="checkpoint_files.py", edits=[("len(own_steps) < KEPT_STEPS", "False")]),
    Mutant(
        name="every base stays",
        file="checkpoint_files.py",
        edits=[("len(own_steps) < KEPT_STEPS", "True"), ("            break\n    return needed", "            pass\n    return needed")],
    ),
    Mutant(
        name="a lost claim's files do not count",
        file="checkpoint_files.py",
        edits=[("name.generation >= claim.generation]", "name.generation == claim.generation]")],
    ),
]


def _copy(target: Path, mutant: Mutant | None) -> Path:
    shutil.copytree(SOURCE, target / "seresnet", ignore=shutil.ignore_patterns("__pycache__"))
    if mutant is not None:
        path = target / "seresnet" / mutant.file
        text = path.read_text()
        for old, new in mutant.edits:
            assert old in text, f"{mutant.name}: {mutant.file} no longer has {old!r}"
            text = text.replace(old, new)
        path.write_text(text)
    return target


def _run(path: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    ours = ("seresnet", "power_loss", "lives", "simulated_disk")
    for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
        del sys.modules[name]
    sys.path[:0] = [path, str(HERE)]
    import lives
    from power_loss import ViolationError

    found = ""
    try:
        assert sys.modules["seresnet"].__file__ == f"{path}/seresnet/__init__.py", "another copy was loaded"
        lives.run_all(seed=1, cap=6)
    except ViolationError as violation:
        found = str(violation)
    except Exception as error:  # junk must not make it raise, so this is a violation, too
        found = f"raised {error!r}"
    os.write(pipe.fileno(), found.encode()[:4000] or b"nothing")
    os._exit(0)


def _verdict(folder: Path, mutant: Mutant | None) -> str:
    """What the suite says of this copy of the product; "nothing" if all promises hold."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=_run, args=(str(_copy(folder, mutant)), theirs), daemon=True)
    process.start()
    theirs.close()
    assert ours.poll(LIMIT_S), f"the suite did not end within {LIMIT_S} s"
    found = os.read(ours.fileno(), 4096).decode()
    process.join(LIMIT_S)
    return found


@pytest.mark.slow
def test_the_suite_finds_nothing_in_the_product_as_it_is(tmp_path: Path) -> None:
    assert _verdict(tmp_path, None) == "nothing"


@pytest.mark.parametrize("mutants", [MUTANTS, pytest.param(MORE, marks=pytest.mark.slow)], ids=["named", "more"])
def test_every_mutant_is_caught(tmp_path: Path, mutants: Sequence[Mutant], report: Report) -> None:
    found = {mutant.name: _verdict(tmp_path / str(index), mutant) for index, mutant in enumerate(mutants)}
    missed = [name for name, verdict in found.items() if verdict == "nothing"]
    # A mutation that does not even run proves nothing of the suite.
    broken = ("another copy", "ImportError", "NameError", "SyntaxError", "AttributeError", "IndentationError", "TypeError")
    wrong = [verdict for verdict in found.values() if not verdict or any(word in verdict for word in broken)]
    assert not missed and not wrong, f"not caught: {missed}; wrong: {wrong}; the others: {found}"
    report("mutants of the product", f"{len(found)} ({', '.join(found)})", "every one is caught by the power-loss suite")
