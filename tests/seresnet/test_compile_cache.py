"""Sealed archives of compiled files: found again, never used damaged, and never a reason to stop."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from seresnet import private_folder
from seresnet.compile_cache import VARIABLE, CompileCache, base_folder, machine_kind
from seresnet.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What takes the place of the system's temp folder."""
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def compiled(base: Path, network: object = "network", content: bytes = b"x" * 5000) -> Path | None:
    """A process that opens the cache, compiles one library, and seals."""
    environ: dict[str, str] = {}
    cache = CompileCache(base, CPU, network)
    cache.open(environ)
    library = Path(environ["TORCHINDUCTOR_CACHE_DIR"]) / "ab" / "library.so"
    library.parent.mkdir()
    library.write_bytes(content)
    return cache.seal(environ)


def found(base: Path, network: object = "network") -> dict[str, bytes]:
    """What another process finds in its private folder."""
    environ: dict[str, str] = {}
    cache = CompileCache(base, CPU, network)
    cache.open(environ)
    private = Path(environ["TORCHINDUCTOR_CACHE_DIR"])
    files = {
        str(path.relative_to(private)): path.read_bytes()
        for path in private.rglob("*")
        if path.is_file() and path.name != private_folder.OWNER
    }
    assert cache.is_warm == bool(files), files
    return files


def test_what_one_process_sealed_another_finds(tmp_path: Path) -> None:
    compiled(tmp_path)
    assert found(tmp_path) == {"ab/library.so": b"x" * 5000}


def test_another_network_finds_nothing(tmp_path: Path) -> None:
    compiled(tmp_path)
    assert found(tmp_path, "another") == {}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_an_archive_cut_short_is_removed_and_not_used(tmp_path: Path, share: float) -> None:
    archive = compiled(tmp_path)
    assert archive is not None
    archive.write_bytes(archive.read_bytes()[: int(share * archive.stat().st_size)])
    assert found(tmp_path) == {} and not archive.exists()
    assert compiled(tmp_path) is not None and found(tmp_path) == {"ab/library.so": b"x" * 5000}


def test_one_flipped_bit_is_seen(tmp_path: Path) -> None:
    archive = compiled(tmp_path)
    assert archive is not None
    content = bytearray(archive.read_bytes())
    content[2000] ^= 1
    archive.write_bytes(content)
    assert found(tmp_path) == {}


def test_of_two_processes_that_compile_at_once_the_first_one_seals(tmp_path: Path) -> None:
    first, second = {}, {}  # type: dict[str, str], dict[str, str]
    caches = [CompileCache(tmp_path, CPU, "network") for _ in range(2)]
    for cache, environ in zip(caches, (first, second), strict=True):
        cache.open(environ)
        (Path(environ["TORCHINDUCTOR_CACHE_DIR"]) / "library.so").write_bytes(bytes(environ is first))
    assert first["TORCHINDUCTOR_CACHE_DIR"] != second["TORCHINDUCTOR_CACHE_DIR"]
    assert caches[0].seal(first) is not None and caches[1].seal(second) is None
    assert list(found(tmp_path)) == ["library.so"]


def test_a_place_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert compiled(tmp_path / "file") is None
    assert "compile_cache=" in caplog.text and "not kept" in caplog.text, caplog.text


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_not_trusted(tmp_path: Path) -> None:
    compiled(tmp_path)
    ours = tmp_path / f"compiled-{os.getuid()}"
    os.chown(ours, 12345, -1)
    assert found(tmp_path) == {}
    os.chown(ours, os.getuid(), -1)
    for archive in ours.rglob("*.tar"):
        os.chown(archive, 12345, -1)
    assert found(tmp_path) == {}
    for archive in ours.rglob("*.tar"):
        os.chown(archive, os.getuid(), -1)
    ours.rename(tmp_path / "moved")
    ours.symlink_to(tmp_path / "moved")
    os.lchown(ours, 12345, -1)
    assert found(tmp_path) == {}


def test_torchs_variable_names_the_place_until_it_names_a_private_folder(tmp_path: Path) -> None:
    environ = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "site")}
    assert base_folder(environ, tmp_path / "data") == tmp_path / "site"
    environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "private")
    assert base_folder(environ, tmp_path / "data") == tmp_path / "site", environ
    assert base_folder({}, tmp_path / "data") == tmp_path / "data"
    assert base_folder({VARIABLE: "/own", "TORCHINDUCTOR_CACHE_DIR": "/other"}, tmp_path) == Path("/own")


def test_the_folders_name_says_versions_and_is_one_for_one_machine() -> None:
    assert machine_kind(CPU) == machine_kind(CPU)
    assert machine_kind(CPU).startswith(f"torch{torch.__version__.replace('+', '-')}-py3."), machine_kind(CPU)


def test_a_disk_that_fills_while_an_archive_is_unpacked_leaves_no_half_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled(tmp_path)
    whole = Path.write_bytes

    def half(path: Path, content: bytes) -> int:
        whole(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", half)
    assert found(tmp_path) == {}


def test_a_second_network_of_one_process_does_not_write_over_a_library_in_use(tmp_path: Path) -> None:
    compiled(tmp_path)
    environ: dict[str, str] = {}
    CompileCache(tmp_path, CPU, "network").open(environ)
    library = Path(environ["TORCHINDUCTOR_CACHE_DIR"]) / "ab" / "library.so"
    library.write_bytes(b"loaded")
    CompileCache(tmp_path, CPU, "network").open(environ)
    assert library.read_bytes() == b"loaded"


def test_an_archive_on_a_shelf_that_cannot_be_written_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled(tmp_path)

    def read_only(path: Path, mode: int) -> None:
        if path.name != "library.so":
            raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "chmod", read_only)
    assert list(found(tmp_path)) == ["ab/library.so"]


def test_without_a_temp_folder_the_user_is_told(tmp_path: Path, temp: Path) -> None:
    temp.rmdir()
    with pytest.raises(ConfigError, match=r"needs a folder for temporary files: .* name another place in TMPDIR"):
        CompileCache(tmp_path, CPU, "network").open({})


# --- private folders


def test_the_folder_is_gone_when_its_process_leaves(tmp_path: Path, temp: Path) -> None:
    environ: dict[str, str] = {}
    CompileCache(tmp_path, CPU, "network").open(environ)
    assert len(list(temp.iterdir())) == 1
    private_folder.remove_own(environ)
    assert list(temp.iterdir()) == []


def start(ending: str) -> "subprocess.Popen[str]":
    code = f"import os; from seresnet import private_folder; print(private_folder.make_folder(), flush=True); {ending}"
    env = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    return subprocess.Popen([sys.executable, "-c", code], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_the_next_start_removes_folders_of_dead_processes_and_of_no_others(temp: Path) -> None:
    with start("input()") as lives, start("os._exit(9)") as dies:
        assert lives.stdout is not None and dies.stdout is not None
        kept, gone = (Path(process.stdout.readline().strip()) for process in (lives, dies))  # type: ignore[union-attr]
        dies.wait(30)
        os.utime(kept, (0, 0))
        unknown, old, elsewhere = (temp / f"{private_folder.PREFIX}1-{name}" for name in ("unknown", "old", "elsewhere"))
        for folder in (unknown, old, elsewhere):
            folder.mkdir()
        (elsewhere / private_folder.OWNER).write_text("another boot")
        os.utime(old, (0, 0))
        mine = private_folder.make_folder()
        found = {folder.name for folder in temp.iterdir()}
        lives.communicate("\n", timeout=30)
    assert found == {folder.name for folder in (kept, unknown, elsewhere, mine)}, (found, gone, old)
    assert not kept.exists(), "an ordinary exit leaves nothing"
