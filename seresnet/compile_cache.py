"""Compiled graphs that outlive their process: sealed archives that a preempted job, and the other runs of a sweep, find again.

torch writes its cache in place, file by file; a job killed meanwhile leaves a library cut in two, which the next one would load. So a
process compiles in a private folder on its node, filled from a sealed archive, and seals its own when all is there. One invariant: a file
is only ever used if the archive that it came in has the digest that its name says.
"""

import contextlib
import hashlib
import io
import logging
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import MutableMapping
from pathlib import Path

import torch

from seresnet import private_folder, provenance
from seresnet.config import slug
from seresnet.durable import canonical_json
from seresnet.errors import ConfigError

log = logging.getLogger("seresnet")

#: Where archives are kept. Set it, or torch's own TORCHINDUCTOR_CACHE_DIR (hpc does, from the site's cache_dir).
VARIABLE = "SERESNET_COMPILE_CACHE"
#: Half-written archives of killed processes are taken away after this long.
STALE_AFTER_S = 86400.0
_NOT_KEPT = (".lock", ".tmp", private_folder.OWNER)


class CompileCache:
    """The archives of one machine kind for one network, and this process's private folder."""

    def __init__(self, base: Path, device: torch.device, network: object) -> None:
        """base: folder for all archives. network: what decides on the graphs, as canonical JSON can write it."""
        self._shelf = base / f"compiled-{os.getuid()}" / machine_kind(device)
        self._key = hashlib.sha256(canonical_json(network).encode()).hexdigest()[:12]
        self.is_warm = False

    def open(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Point torch at this process's private folder, filled from the first archive that is whole. A cold one is never an error.

        Raises ConfigError where there can be no private folder.
        """
        private = private_folder.own_folder(environ) or _private_folder(environ)
        try:
            self._prepare_shelf()
            self.is_warm = any(self._unpack(path, private) for path in self._archives())
        except (OSError, tarfile.TarError) as error:
            log.warning("compile_cache=%s error=%s compiling anew", self._shelf, error)
            _empty(private)  # a library cut in two by a full disk would be loaded

    def seal(self, environ: MutableMapping[str, str] = os.environ) -> Path | None:
        """Keep what was compiled, unless another process was faster; None where nothing was kept."""
        try:
            if self.is_warm or self._archives():
                return None
            return self._write(_packed(Path(environ["TORCHINDUCTOR_CACHE_DIR"])))
        except OSError as error:
            log.warning("compile_cache=%s error=%s not kept", self._shelf, error)
            return None

    def _prepare_shelf(self) -> None:
        # The outer one first: below a private folder nobody else can put anything, whoever may write beside it.
        for folder in (self._shelf.parent, self._shelf):
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            # Its content is run as code: a folder, or a link to one, that somebody else made is none of ours.
            for facts in (folder.lstat(), folder.stat()):
                if facts.st_uid != os.getuid():
                    raise PermissionError(f"{folder} belongs to user {facts.st_uid}")
            if folder.stat().st_mode & 0o777 != 0o700:  # asked first: a shelf that is mounted read-only can be read from
                folder.chmod(0o700)

    def _archives(self) -> list[Path]:
        return sorted(path for path in self._shelf.glob(f"{self._key}-*.tar") if path.stat().st_uid == os.getuid())

    def _unpack(self, archive: Path, private: Path) -> bool:
        content = archive.read_bytes()
        if archive.stem.partition("-")[2] != hashlib.sha256(content).hexdigest():
            log.warning("compile_cache=%s damaged: removed, compiling anew", archive)
            archive.unlink(missing_ok=True)
            return False
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for member in tar:
                source = tar.extractfile(member)
                assert source is not None and ".." not in Path(member.name).parts, f"{archive}: {member.name} is none of ours"
                target = private / member.name
                if target.exists():
                    continue  # of another network of this process, which has it loaded: written over, it would crash
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read())
                target.chmod(member.mode)
        return True

    def _remove_leftovers(self) -> None:
        for path in self._shelf.glob(".new-*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_AFTER_S:
                    path.unlink()

    def _write(self, content: bytes) -> Path:
        self._remove_leftovers()
        path = self._shelf / f"{self._key}-{hashlib.sha256(content).hexdigest()}.tar"
        handle, temp = tempfile.mkstemp(dir=self._shelf, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temp, path)
        except OSError:
            Path(temp).unlink(missing_ok=True)
            raise
        log.info("compile_cache=%s bytes=%d", path, len(content))
        return path


def base_folder(environ: MutableMapping[str, str], otherwise: Path) -> Path:
    """Where archives go: as the environment says, else the folder given. torch's variable later names a private one."""
    named = environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    own = not named or Path(named).name.startswith(private_folder.PREFIX)
    return Path(environ.setdefault(VARIABLE, str(otherwise) if own else named))


def machine_kind(device: torch.device) -> str:
    """A folder name of all that a compiled file depends on beside the graph: versions, Python, compiler, model of the device."""
    cuda = device.type == "cuda"
    model = torch.cuda.get_device_name(device) if cuda else f"{provenance.cpu_model()} {torch.backends.cpu.get_cpu_capability()}"
    versions = [torch.__version__, _triton_version(), platform.python_version(), platform.machine(), _compiler_version(cuda)]
    digest = hashlib.sha256(canonical_json([model, *versions]).encode()).hexdigest()[:8]
    return slug(f"torch{torch.__version__}-py{platform.python_version()}-{model}")[:51] + f"-{digest}"


def _triton_version() -> str:
    try:
        import triton  # type: ignore[import-untyped]
    except ImportError:
        return "none"
    return str(triton.__version__)


def _compiler_version(cuda: bool) -> str:
    name = os.environ.get("CC", "gcc") if cuda else os.environ.get("CXX", "g++")
    try:
        return subprocess.run([name, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout.partition("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _private_folder(environ: MutableMapping[str, str]) -> Path:
    """This process's folder; torch, Triton and the helpers that they start find it in the environment."""
    try:
        private = private_folder.make_folder()
    except OSError as error:
        wanted = f"train.compile: true needs a folder for temporary files: {error.filename or 'TMPDIR'}: {error.strerror or error}"
        raise ConfigError(f"{wanted}. Make room there, name another place in TMPDIR, or set train.compile: false.") from error
    environ[private_folder.VARIABLE], environ["TRITON_CACHE_DIR"] = str(private), str(private / "triton")
    return private


def _empty(private: Path) -> None:
    for path in private.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != private_folder.OWNER:
            path.unlink()


def _packed(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and not path.name.endswith(_NOT_KEPT):
                tar.add(path, arcname=str(path.relative_to(folder)), recursive=False)
    return buffer.getvalue()
