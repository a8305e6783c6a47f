"""Sealed archives of compiled files: found again, never used damaged, and never a reason to stop."""

import os
from pathlib import Path

import pytest
import torch

from seresnet.compile_cache import VARIABLE, CompileCache, base_folder, machine_kind

CPU = torch.device("cpu")


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
    files = {str(path.relative_to(private)): path.read_bytes() for path in private.rglob("*") if path.is_file()}
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
    os.chown(tmp_path / f"compiled-{os.getuid()}", 12345, -1)
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
