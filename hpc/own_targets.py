"""Targets of a sweep, looked at before anything is sent: where their modules lie, and whether they define the names.

Sources are read, never imported: a login node has neither torch nor room for it. One invariant: what cannot be told from the source is
noted as not looked at, never refused.
"""

import ast
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hpc import own_program
from hpc.sweep_spec import Arm
from seresnet import own_code
from seresnet.config import ARGS_OF, iter_keys, split_target
from seresnet.errors import ConfigError
from seresnet.strict_yaml import Bad, Faults, Located, Place, nearest


@dataclass(frozen=True, kw_only=True)
class Target:
    """One target, and who wrote it."""

    key: str
    text: str
    origin: str  # "FILE:LINE"

    @property
    def module(self) -> str:
        return split_target(self.text)[0]

    @property
    def name(self) -> str:
        return split_target(self.text)[1].partition(".")[0]


def read_own_code(entry: Located | None, path: Path, arms: Sequence[Arm], faults: Faults) -> tuple[Path | None, tuple[str, ...]]:
    """The sweep's code_root, and what could not be looked at. Notes a fault for each target that is not where it should be.

    entry: relative to the sweep's file; by default the file's own folder, if a module that a target names, or the program, lies there.
    """
    targets, programs = list(_targets(arms)), own_program.programs_of(arms)
    root = _root(entry, path, targets, programs, faults)
    if root is not None:
        _check_folder(root, entry.place if entry else Place(str(path)), faults)
    notes = []
    for target in targets:
        problem, note = _look(target, root)
        if problem:
            faults.add(Place(target.origin), target.key, problem)
        notes += [f"{target.key} {target.text}: {note}"] if note else []
    notes += [f"program: {note}" for program in programs if (note := own_program.look(program, root, faults))]
    return root, tuple(dict.fromkeys(notes))


def _targets(arms: Sequence[Arm]) -> Iterator[Target]:
    found: dict[tuple[str, str], Target] = {}
    for arm in arms:
        values = {dotted: value for dotted, _, value, _ in iter_keys(arm.loaded.config)}
        for key in ARGS_OF.values():
            if isinstance(text := values[key], str):
                found.setdefault((key, text), Target(key=key, text=text, origin=arm.loaded.origins[key]))
    yield from found.values()


def _root(
    entry: Located | None, path: Path, targets: Sequence[Target], programs: Sequence[own_program.Program], faults: Faults
) -> Path | None:
    if entry is None or entry.value is None:
        folder = path.resolve().parent
        is_there = own_code.holds(folder, [target.module for target in targets]) or own_program.lie_in(folder, programs)
        return folder if is_there else None
    if entry.value is Bad.BAD:
        return None
    if not isinstance(entry.value, str) or not (path.parent / Path(entry.value).expanduser()).is_dir():
        faults.add(entry.place, "code_root", f"{entry.shown()} is not a folder, looked for beside {path.name}. Name the modules' folder.")
        return None
    return (path.parent / Path(entry.value).expanduser()).resolve()


def _check_folder(root: Path, place: Place, faults: Faults) -> None:
    """What would be found before Python's own modules, as import looks here first, or is too large to copy."""
    taken = {*sys.stdlib_module_names, "hpc", "seresnet", "torch", "numpy"}
    try:
        tops = {path.relative_to(root).parts[0].removesuffix(".py") for path in own_code.files(root)}
    except ConfigError as error:
        faults.add(place, "", str(error))
        return
    for name in sorted(tops & taken):
        faults.add(place, "code_root", f"{root / name} would be imported instead of the {name} that others mean. Rename it.")


def _look(target: Target, root: Path | None) -> tuple[str | None, str | None]:
    """(what is wrong, what could not be looked at), mostly neither."""
    top, *below = target.module.split(".")
    if root is not None and own_code.holds(root, [top]):
        return _look_inside(target, root, [top, *below], is_own=True)
    # Not where the launcher was started: jobs start elsewhere.
    here = {"", str(Path.cwd())}
    spec = importlib.machinery.PathFinder.find_spec(top, [entry for entry in sys.path if entry not in here])
    if spec is not None and spec.origin:
        origin = Path(spec.origin)
        return _look_inside(target, origin.parent.parent if origin.name == "__init__.py" else origin.parent, [top, *below], is_own=False)
    if own_code.holds(Path.cwd(), [top]):
        return f"{target.text}: {top} lies in {Path.cwd()}, which is not part of the sweep. Say code_root: with that folder.", None
    if near := nearest(top, _modules(root) if root else []):
        return f"{target.text}: there is no module {top} in {root}. Did you mean {near}?", None
    where = f"neither in {root} nor installed here" if root else "not installed here, and there is no code_root"
    return None, f"{top} is {where}, so it was not looked at; jobs must have it installed"


def _look_inside(target: Target, root: Path, parts: Sequence[str], *, is_own: bool) -> tuple[str | None, str | None]:
    folder = root
    for part in parts[:-1]:
        folder = folder / part
    source = next((path for path in (folder / f"{parts[-1]}.py", folder / parts[-1] / "__init__.py") if path.is_file()), None)
    if source is None:
        near = nearest(parts[-1], _modules(folder)) if folder.is_dir() else None
        if not is_own:
            return None, f"{target.module} is not a source file here, so it was not looked at"
        return f"{target.text}: there is no module {target.module} in {root}. {f'Did you mean {near}?' if near else 'Correct it.'}", None
    try:
        names, is_open = _names(ast.parse(source.read_bytes(), str(source)))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        return f"{target.text}: {source}{f':{line}' if line else ''}: {error.args[0]}. Correct it.", None
    except OSError as error:
        return f"{target.text}: {source}: {error.strerror}. Give this user the right to it.", None
    # A package's modules are its names too, once somebody imports them.
    if target.name in names or (source.name == "__init__.py" and target.name in _modules(source.parent)):
        return None, None
    if is_open:
        return None, f"{source.name} makes names that only importing it would tell, so {target.name} was not looked at"
    near = nearest(target.name, sorted(names))
    return f"{target.text}: {source} defines no {target.name}. {f'Did you mean {near}?' if near else 'Correct the name.'}", None


def _modules(folder: Path) -> list[str]:
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    return sorted(files | {path.parent.name for path in folder.glob("*/__init__.py")})


def _names(tree: ast.Module) -> tuple[set[str], bool]:
    """What a module's source defines or imports at its top, also under if and try; and whether it may have more."""
    names: set[str] = set()
    is_open = False
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        else:
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
            for block in ("body", "orelse", "finalbody"):
                waiting += getattr(node, block, [])
            waiting += [inner for handler in getattr(node, "handlers", []) for inner in handler.body]
    makers = {"globals", "exec", "setattr", "vars"} & {part.id for part in ast.walk(tree) if isinstance(part, ast.Name)}
    is_open = "*" in names or "__getattr__" in names or bool(makers)
    return names, is_open
