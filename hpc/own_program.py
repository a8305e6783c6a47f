"""The script of a sweep's `program:`, looked at before anything is sent; and the command line that starts it in a task.

Its contract is docs/own-script.md. Sources are read, never run. One invariant: what a task starts is the copy in the sweep's code
snapshot, wherever a relative script lies now.
"""

import ast
import logging
import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

from hpc import code_snapshot
from hpc.sweep_spec import Arm
from seresnet import own_code, provenance
from seresnet.config import RunConfig
from seresnet.durable import write_json_durably
from seresnet.errors import ConfigError, ToolkitError
from seresnet.run_folder import RunFolder, RunRecord
from seresnet.strict_yaml import Faults, Place, nearest

log = logging.getLogger("hpc.supervisor")

KEY = "program.command"
_PYTHON = ("python", "python3")
_LONGEST = 100  # characters of a command in a note


@dataclass(frozen=True, kw_only=True)
class Program:
    """One command of a sweep, and who wrote it."""

    command: tuple[str, ...]
    origin: str  # "FILE:LINE"

    @property
    def script(self) -> str | None:
        """The file that it runs, relative to code_root: the first word that is one; None where there is none (-m, an absolute path)."""
        return next((word for before, word in pairwise(("", *self.command)) if before != "-c" and _is_script(word)), None)

    @property
    def module(self) -> str | None:
        """The module after -m."""
        options = list(takewhile(lambda word: word.startswith("-"), self.command[1:]))
        words = self.command[1 + len(options) :]
        return words[0] if self.command[0] in _PYTHON and options[-1:] == ["-m"] and words else None

    def __str__(self) -> str:
        text = shlex.join(self.command)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _is_script(word: str) -> bool:
    return word.endswith(own_code.SUFFIXES) and not word.startswith(("-", "/")) and "{run_dir}" not in word


def programs_of(arms: Sequence[Arm]) -> list[Program]:
    """The commands that arms name, each once."""
    found: dict[tuple[str, ...], Program] = {}
    for arm in arms:
        if command := arm.loaded.config.program.command:
            found.setdefault(command, Program(command=command, origin=arm.loaded.origins[KEY]))
    return list(found.values())


def lie_in(folder: Path, programs: Sequence[Program]) -> bool:
    """Whether the folder holds any of these scripts or modules."""
    scripts = [program.script for program in programs if program.script]
    modules = [program.module for program in programs if program.module]
    return any((folder / script).is_file() for script in scripts) or own_code.holds(folder, modules)


def look(program: Program, root: Path | None, faults: Faults) -> str | None:
    """Note a fault for a script that is not there, is not copied or cannot be parsed; what could not be looked at, else None."""
    if problem := _of_first_word(program, root):
        faults.add(Place(program.origin), KEY, problem)
        return None
    if program.script is None and program.module is None:
        return f"{program} names no script of code_root, so it was not looked at; jobs must find it"
    if (source := _source(program, root)) is None:
        if program.module is not None and not (root and own_code.holds(root, [program.module])):
            return f"module {program.module} is not in code_root, so it was not looked at; jobs must have it installed"
        faults.add(Place(program.origin), KEY, _missing(program, root))
        return None
    if source.suffix != ".py":
        return None
    try:
        ast.parse(source.read_bytes(), str(source))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        faults.add(Place(program.origin), KEY, f"{source}{f':{line}' if line else ''}: {error.args[0]}. Correct it.")
    except OSError as error:
        faults.add(Place(program.origin), KEY, f"{source}: {error.strerror}. Give this user the right to it.")
    return None


def _source(program: Program, root: Path | None) -> Path | None:
    """Among what is copied: a file that is hidden, or outside, is not there when the job starts."""
    if root is None:
        return None
    if program.script is not None:
        names = [os.path.normpath(program.script)]
    else:
        path = str(program.module).replace(".", "/")
        names = [f"{path}.py", f"{path}/__main__.py"]
    copied = _names(root)
    return next((root / name for name in names if name in copied), None)


def _names(root: Path) -> list[str]:
    try:
        return [path.relative_to(root).as_posix() for path in own_code.files(root)]
    except ConfigError:
        return []  # too many, which is a fault of its own


def _of_first_word(program: Program, root: Path | None) -> str | None:
    """What is wrong with the word that is started, where that is no name for PATH."""
    word = program.command[0]
    if "/" not in word:
        return (
            f"{word} would be looked for on PATH. Write the interpreter before it, such as python, or ./{word}."
            if _is_script(word)
            else None
        )
    if word.startswith("/") or "{run_dir}" in word:
        return None
    if root is None:
        return (
            f"{word} is started in the copy of code_root, and there is none. Name it by its absolute path, or say code_root: for a script."
        )
    if os.path.normpath(word) not in _names(root):
        kinds = ", ".join(f"*{suffix}" for suffix in own_code.SUFFIXES)
        return f"{word} is not among the files of {root} that are copied with a sweep ({kinds}). Name it by its absolute path."
    if not os.access(root / word, os.X_OK):
        return f"{root / word} is not executable. Say chmod +x, or write its interpreter before it."
    return None


def _missing(program: Program, root: Path | None) -> str:
    wanted = program.script or f"{str(program.module).replace('.', '/')}.py"
    if root is None:
        return f"{wanted} lies beside no sweep, and there is no code_root. Say code_root: with the folder of the script."
    if (root / wanted).is_file():
        return f"{wanted} is not copied with a sweep: it is hidden, outside of {root}, or in an environment or a sweep. Move it."
    near = nearest(wanted, sorted(_names(root)))
    return f"there is no {wanted} in {root}. {f'Did you mean {near}?' if near else 'Correct the name, or code_root.'}"


def command_of(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The command of a run's record; None for a run of the built-in training. Raises ConfigError for a damaged one."""
    section = config.get("program") or {}
    command = section.get("command") if isinstance(section, Mapping) else section
    if command is None:
        return None
    if not isinstance(command, list) or not command or not all(isinstance(word, str) for word in command):
        raise ConfigError(f"run.yaml: config.program.command is {command!r}, not a list of words. Launch the sweep again to write it.")
    return (sys.executable if command[0] in _PYTHON else command[0], *command[1:])


def has_written(folder: RunFolder, generation: int) -> bool:
    """Whether an attempt that nobody wrote an end of left anything in its journal."""
    try:
        return folder.journal(generation).stat().st_size > 0
    except OSError:
        return False


def introduce(folder: RunFolder, generation: int, record: RunRecord, code: Path) -> None:
    """Write what an attempt runs on, as the built-in training does itself. Best effort: a full disk must not end a run that begins."""
    train = record.config.get("train", {})
    facts = {"device": device_of(train.get("device")), "world_size": train.get("ranks", 1)}
    try:
        facts["code_digest"] = provenance.code_digest((code if (code / "seresnet").is_dir() else code_snapshot.ROOT) / "seresnet")
        write_json_durably(folder.environment(generation), {**facts, "commit": provenance.commit(), "versions": provenance.versions()})
    except (OSError, ToolkitError) as error:  # ToolkitError: there is too much of somebody's code to read
        log.warning("environment_not_recorded run=%s error=%s", record.run_id, error)


def device_of(kind: object) -> str:
    """A GPU's name would want torch; the processor's does not."""
    return f"cpu: {provenance.cpu_model()}" if kind == "cpu" else str(kind)


def folder_of(code: Path) -> Path:
    """Where a program is started: beside its script, in the snapshot; without a launcher in code_root, else in the current folder."""
    return own_code.code_root(code) or own_code.code_root() or code


def refuse_programs(configs: Iterable[RunConfig], option: str) -> None:
    """Raise ConfigError where a run is a program's: the option rests on the built-in training."""
    if any(config.program.command for config in configs):
        raise ConfigError(f"{option} looks into the built-in training, and this run is a program of its own. Leave {option} away.")
