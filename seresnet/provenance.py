"""Which code, on which machine, in which environment: what each attempt records about itself. Torch-free and never fatal."""

import functools
import hashlib
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = ("torch", "torchvision", "numpy", "safetensors", "pillow", "scikit-learn")


@functools.cache
def code_digest() -> str:
    """First 16 hex digits of the SHA-256 over seresnet's source files, names and bytes: what is trained, not how it is run."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def commit() -> str | None:
    """The commit of the code in use: from the snapshot's CODE.json, else from git, else None."""
    root = Path(__file__).parent.parent
    try:
        recorded: str | None = json.loads((root / "CODE.json").read_text()).get("commit")
        return recorded
    except (OSError, ValueError):
        pass
    try:
        answer = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


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
