"""Which code, on which machine, in which environment: what each attempt records about itself. Torch-free and never fatal."""

import functools
import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from seresnet import own_code
from seresnet.durable import parse_json

#: What commit() speaks of, beside each other in a checkout, an installation and a snapshot.
_SOURCES = ("hpc", "seresnet")
_PACKAGES = ("torch", "torchvision", "numpy", "safetensors", "pillow", "scikit-learn")


@functools.cache
def code_digest(package: Path = Path(__file__).parent) -> str:
    """First 16 hex digits of the SHA-256 over seresnet's source files, names and bytes: what is trained, not how it is run.

    package: the seresnet folder, of another checkout or a snapshot; by default this one.
    Somebody else's modules beside it count where there are any, see own_code.
    """
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    digest.update((own_code.digest(package.parent) or "").encode())
    return digest.hexdigest()[:16]


def commit() -> str | None:
    """The commit of the code in use, with "+dirty" behind it if the code has been changed since; None where nobody knows."""
    found, is_dirty = commit_and_dirty(Path(__file__).resolve().parent.parent)
    return f"{found}+dirty" if found and is_dirty else found


def commit_and_dirty(root: Path) -> tuple[str | None, bool | None]:
    """The commit of the packages in root and whether they differ from it: from a snapshot's CODE.json, else from git, else None."""
    try:
        record = parse_json((root / "CODE.json").read_text())
        return record["commit"], record["dirty"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", *_SOURCES) if found else None
    return found, None if changes is None else bool(changes)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose kernels or decoders decide bits."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """The processor's name as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(root: Path, *args: str) -> str | None:
    # Without optional locks: several ranks ask at once, and somebody may be committing.
    command = ["git", "--no-optional-locks", "-C", str(root), *args]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
