"""Where somebody else's modules lie: the copy in a sweep's code snapshot, or the folder that the command line or the environment names.

Torch-free; importing what is found there is targets.py's business. One invariant: what runs from a snapshot takes its modules from that
snapshot alone, whatever the environment says.
"""

import hashlib
import importlib.machinery
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import seresnet
from seresnet.errors import ConfigError

#: Of a run without a launcher, as --code-root: the folder in which its modules lie.
VARIABLE = "SERESNET_CODE_ROOT"
#: Below a code snapshot.
FOLDER = "user"
MARK = "CODE.json"
_ROOT = Path(seresnet.__file__).resolve().parent.parent
#: They lie beside somebody's modules in a checkout of ours, and a snapshot holds them by themselves.
_OURS = ("hpc", "seresnet")
#: What is found in a folder that is no code: an environment, a sweep, a run.
_NOT_CODE = ("pyvenv.cfg", "plan.json", "run.yaml", MARK)
_MOST_FILES = 2000
#: What is copied: Python's modules, and scripts of the languages that a program of one's own may be written in.
SUFFIXES = (".py", ".sh", ".bash", ".R", ".r", ".jl", ".pl", ".lua", ".m", ".rb")


def code_root(code: Path = _ROOT) -> Path | None:
    """The folder with somebody else's modules; None where there is none. code: what holds our packages, by default what runs here."""
    if (code / MARK).exists():
        return code / FOLDER if (code / FOLDER).is_dir() else None
    named = os.environ.get(VARIABLE) if code.resolve() == _ROOT else None
    return Path(named).expanduser().resolve() if named else None


def make_importable() -> None:
    """Let import look there first, as Python does in a script's folder."""
    root = code_root()
    if root is not None and str(root) not in sys.path:
        sys.path.insert(0, str(root))


def name_root(root: Path) -> None:
    """Say where the modules of this process lie, and of the processes that it starts. Raises ConfigError where that is no folder."""
    if not root.is_dir():
        raise ConfigError(f"code_root: {root} is not a folder. Name the one that the modules lie in.")
    os.environ[VARIABLE] = str(root.resolve())


def name_root_of(run: Path) -> None:
    """Where no place is named: the newest code of the sweep that this run's folder lies in."""
    if code_root() is None and (found := sorted(run.parent.glob(f"code/[0-9]*/{FOLDER}"))):
        name_root(found[-1])


def holds(root: Path, modules: Sequence[str]) -> bool:
    """Whether any of these modules lies in the folder, as a file or a package."""
    tops = {module.partition(".")[0] for module in modules}
    return any((root / f"{top}.py").is_file() or (root / top / "__init__.py").is_file() for top in tops)


def files(root: Path) -> Iterator[Path]:
    """Its sources (SUFFIXES), sorted; hidden folders, environments, sweeps, runs and our own packages are passed over.

    Raises ConfigError for a folder that is too large to be copied with every sweep.
    """
    count = 0
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if _is_code(here / name) and not (here == root and name in _OURS))
        for name in sorted(names):
            if name.endswith(SUFFIXES) and not name.startswith("."):
                count += 1
                if count > _MOST_FILES:
                    raise ConfigError(f"code_root: {root} holds more than {_MOST_FILES} source files. Name the folder of your own alone.")
                yield here / name


def digest(code: Path = _ROOT) -> str | None:
    """16 hex digits over the names and bytes of those files; None where there are none of somebody else's."""
    root = code_root(code)
    if root is None:
        return None
    whole = hashlib.sha256()
    for path in files(root):
        whole.update(f"{path.relative_to(root).as_posix()}\0".encode())
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()[:16]


def digest_of_module(module: str) -> str | None:
    """16 hex digits that tell the code of a module: of all files there if it lies under code_root, else of its own source file.

    None where there is no such file. Nothing is imported.
    """
    root = code_root()
    if root is not None and holds(root, [module]):
        return digest()
    name, spec, places = "", None, None
    for part in module.split("."):
        name = f"{name}.{part}".lstrip(".")
        spec = importlib.machinery.PathFinder.find_spec(name, places)
        if spec is None:
            return None
        places = spec.submodule_search_locations
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:16]


def _is_code(folder: Path) -> bool:
    if folder.name.startswith(".") or folder.name == "__pycache__":
        return False
    return not any((folder / name).exists() for name in _NOT_CODE)
