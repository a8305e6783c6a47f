"""`python -m seresnet.checkpoint verify|list|repair RUN_DIR...`: what a run's checkpoints are, whether they are good, and mending them.

Needs no torch and no scheduler, so it works on a login node. Looking is inspection.py's job, mending repair.py's, words are
checkpoint_view.py's. One invariant: list and verify change nothing.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seresnet.command import run_command

if TYPE_CHECKING:
    from seresnet.run_folder import RunFolder

#: As long as a claim watches a beat (ADR 6): an owner's heart may have stood still for so long, and its owner may live.
_LEAST_WATCH_S = 90.0
_COMMANDS = {
    "list": "every checkpoint: step, what it is, size, age, whether its bytes are those that its name promises; "
    "ends with 0 also where files are damaged",
    "verify": "check everything that can be checked without torch, and say where a start goes on; 1 where there is damage",
    "repair": "set damaged files aside, bring good ones back, take torn lines out; never deletes a checkpoint",
}


def main(argv: Sequence[str] | None = None) -> int:
    """0: all good; 1: damage (for repair: some is left); 2: wrong use; 77: somebody owns the run that repair was asked for."""
    arguments = _parser().parse_args(argv)
    # Imported here: --help must not wait for YAML.
    from seresnet.errors import OwnedElsewhereError, ToolkitError
    from seresnet.exits import Exit

    try:
        folders = list({folder.path.resolve(): folder for name in arguments.runs for folder in find_runs(Path(name))}.values())
        return _COMMAND[arguments.command](folders, arguments)
    except OwnedElsewhereError as error:
        print(error, file=sys.stderr)
        return int(Exit.FENCED)
    except ToolkitError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains once more at its end
        return 0
    except OSError as error:
        print(f"{error.filename or arguments.runs[0]}: {error.strerror or error}", file=sys.stderr)
        return 2


def find_runs(path: Path) -> "list[RunFolder]":
    """The runs that a user means: a run's folder or something in it, a sweep's folder, or a run's name without its id, or its id.

    Raises ConfigError where that is none, or several.
    """
    from seresnet.errors import ConfigError
    from seresnet.run_folder import RunFolder

    within = (*path.absolute().parents[:3],) if path.is_file() or path.name in ("ckpt", "bad", "attempts", "metrics") else ()
    for place in (path, *within) if path.exists() else ():
        if _is_run(place):
            return [RunFolder(path=place)]
        if place is path and path.is_dir() and (inside := _runs_in(path)):
            return [RunFolder(path=child) for child in inside]
    if path.exists():
        sweeps = sorted(plan.parent.name for plan in path.glob("*/plan.json"))
        hint = "Launch the sweep first." if (path / "plan.json").exists() else "Give a folder that holds run.yaml, or a sweep's folder."
        if sweeps:
            hint = f"Sweeps in it: {', '.join(sweeps[:10])}{', ...' if len(sweeps) > 10 else ''}. Give one of them."
        raise ConfigError(f"{path}: neither a run nor a sweep with runs. {hint}")
    named = [child for child in _runs_in(path.parent) if _is_called(child.name, path.name)]
    if len(named) == 1:
        return [RunFolder(path=named[0])]
    if named:
        raise ConfigError(f"{path}: the name of several runs: {', '.join(child.name for child in named[:10])}. Give one of them.")
    beside = ", ".join(child.name for child in _runs_in(path.parent)[:10])
    raise ConfigError(f"{path}: there is no such run. " + (f"Beside it: {beside}." if beside else "Give a run's or a sweep's folder."))


def _is_run(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in ("run.yaml", "ckpt", "attempts"))


def _runs_in(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(child for child in path.iterdir() if ".set-aside-" not in child.name and _is_run(child))


def _is_called(folder: str, name: str) -> bool:
    slug, _, own_id = folder.rpartition("-")
    return name == slug or (len(name) >= 4 and own_id.startswith(name))


def _list(folders: "Sequence[RunFolder]", arguments: argparse.Namespace) -> int:
    from seresnet import checkpoint_view, inspection

    looks = [inspection.inspect(folder) for folder in folders]
    if arguments.json:
        _print_json([checkpoint_view.to_json(look) for look in looks])
    else:
        print("\n\n".join(checkpoint_view.table(look, checkpoint_view.width()) for look in looks))
    return int(any(look.unlisted for look in looks))


def _verify(folders: "Sequence[RunFolder]", arguments: argparse.Namespace) -> int:
    from seresnet import checkpoint_view, inspection

    code, documents = 0, []
    for folder in folders:
        look = inspection.inspect(folder)
        code = max(code, int(any(finding.is_damage for finding in look.findings)))
        documents.append(checkpoint_view.to_json(look))
        if not arguments.json:
            print(checkpoint_view.verdict(look, checkpoint_view.width()), flush=True)
    if arguments.json:
        _print_json(documents)
    return code


def _repair(folders: "Sequence[RunFolder]", arguments: argparse.Namespace) -> int:
    """One run after the other; a run that somebody owns does not keep the others from being mended."""
    from seresnet import checkpoint_view, repair
    from seresnet.errors import OwnedElsewhereError
    from seresnet.exits import Exit

    code = 0
    documents: list[dict[str, object]] = []
    for folder in folders:
        try:
            done = repair.repair(folder, dry_run=arguments.dry_run, observe_s=arguments.watch_s)
        except OwnedElsewhereError as error:
            print(f"{error} Nothing was changed.", file=sys.stderr)
            code = int(Exit.FENCED)
            documents.append({"run": str(folder.path), "owned": str(error)})
            continue
        code = max(code, int(bool(done.left)))
        documents.append({**checkpoint_view.to_json(done.look), "done": done.done, "left": done.left, "proof": done.proof})
        if not arguments.json:
            print(checkpoint_view.repaired(done, checkpoint_view.width(), dry_run=arguments.dry_run), flush=True)
    if arguments.json:
        _print_json(documents)
    return code


_COMMAND = {"list": _list, "verify": _verify, "repair": _repair}


def _print_json(documents: object) -> None:
    print(json.dumps({"schema": 1, "runs": documents}, indent=1))


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not _LEAST_WATCH_S <= value < math.inf:  # a watch until nan would be over before it began
        rule = f"Use {_LEAST_WATCH_S:.0f} or more: a living owner may be silent for that long, and a shorter look proves nothing"
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds that proves an owner gone. {rule}")
    return value


def _folder(text: str) -> str:
    if not text.strip():  # Path("") is the current folder
        raise argparse.ArgumentTypeError("it is empty. Is a shell variable not set? For the current folder write .")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m seresnet.checkpoint", description="Look at a run's checkpoints, check them, mend them."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|verify|repair")
    for name, what in _COMMANDS.items():
        command = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        command.add_argument("runs", nargs="+", type=_folder, metavar="RUN_DIR", help="a run's folder, or a sweep's for all of its runs")
        command.add_argument("--json", action="store_true", help="for programs")
        if name == "repair":
            command.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
            command.add_argument(
                "--watch-s",
                type=_seconds,
                default=_LEAST_WATCH_S,
                metavar="S",
                help="how long a beat must stand still to prove its owner gone, where nothing else does; "
                f"default and least {_LEAST_WATCH_S:.0f}",
            )
    return parser


if __name__ == "__main__":
    run_command(main)
