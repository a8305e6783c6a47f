"""`python -m hpc.archive`: one verified tar file that collect reads as it is, and that is refused when it is not what its list says."""

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from fake_sweep import FakeSweep
from moving import snapshot

from hpc import archive, archive_file, collect, locks
from hpc.paths import Submission, Submissions
from seresnet.errors import SubmissionError, ToolkitError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[FakeSweep, Path]:
    """A sweep with a run in every way of ending, a link, an empty folder, and its archive."""
    sweep = FakeSweep(tmp_path_factory.mktemp("made"), seeds=3).finish_all()
    sweep.of("se", 2).result.unlink()
    sweep.attempt("se", 2, "diverged", "loss is not finite")
    entry = Submission(id="0001", created=0, code="0001", mode="local", tasks=tuple(sweep.plan.tasks), state="done")
    Submissions().with_entry(entry).write(sweep.folder)
    (sweep.of("se", 1).path / "latest").symlink_to("metrics")
    (sweep.folder.path / "code" / "0001" / "hpc").mkdir(parents=True)
    (sweep.folder.path / "code" / "0001" / "hpc" / "x.py").write_text("1\n")
    (sweep.of("se", 0).path / "profile").mkdir()
    archive.archive(sweep.folder.path)
    return sweep, sweep.folder.path.with_name("demo.tar")


def test_what_is_restored_is_what_was_archived(made: tuple[FakeSweep, Path], tmp_path: Path) -> None:
    sweep, path = made
    archive.restore(path, tmp_path / "again")
    assert snapshot(tmp_path / "again") == snapshot(sweep.folder.path)
    assert (tmp_path / "again" / "plan.json").read_bytes() == sweep.folder.plan.read_bytes()
    again = tmp_path / "again" / sweep.of("se", 1).path.name
    assert (str((again / "latest").readlink()), (again.with_name(sweep.of("se", 0).path.name) / "profile").is_dir()) == ("metrics", True)
    claim = sweep.of("se", 1).claim(1)
    assert (again / "attempts" / claim.name).stat().st_mtime_ns == claim.stat().st_mtime_ns, "batch words are judged by age"
    assert [entry.name for entry in tmp_path.iterdir()] == ["again"]


def test_another_tar_reads_it_and_finds_nobodys_name_in_it(made: tuple[FakeSweep, Path]) -> None:
    with tarfile.open(made[1]) as tar:
        members = tar.getmembers()
    assert {(info.uid, info.gid, info.uname, info.gname) for info in members} == {(0, 0, "", "")}
    assert {info.mode for info in members if info.isfile()} == {0o644}
    names = [info.name for info in members]
    assert names[-1] == "archive.json" and names[0] == "demo" and "demo/.launch.lock" not in names


def test_the_same_folder_gives_the_same_bytes(made: tuple[FakeSweep, Path], tmp_path: Path) -> None:
    archive.archive(made[0].folder.path, tmp_path / "second.tar")
    assert (tmp_path / "second.tar").read_bytes() == made[1].read_bytes()


@pytest.mark.parametrize("records_only", [False, True])
def test_collect_makes_the_same_table_from_the_archive(made: tuple[FakeSweep, Path], tmp_path: Path, records_only: bool) -> None:
    path = tmp_path / "demo.tar"
    archive.archive(made[0].folder.path, path, records_only=records_only)
    assert collect.main([str(made[0].folder.path), "--no-figures", "--output", str(tmp_path / "from-folder")]) == 0
    assert collect.main([str(path), "--no-figures"]) == 0
    for name in ("table.md", "runs.csv"):
        assert (tmp_path / "demo.collected" / name).read_text() == (tmp_path / "from-folder" / name).read_text()


def test_records_only_holds_no_checkpoint_and_no_code(made: tuple[FakeSweep, Path], tmp_path: Path) -> None:
    archive.archive(made[0].folder.path, tmp_path / "small.tar", records_only=True)
    with archive_file.reading(tmp_path / "small.tar") as found:
        names = list(found.manifest.entries)
    assert not [name for name in names if "ckpt" in name or name.startswith("code/")], names
    assert sum(name.endswith("run.yaml") for name in names) == 6


# --- what is refused ---


def test_it_is_refused_while_somebody_may_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    sweep.folder.logs.mkdir()
    with locks.holding(sweep.folder.local_lock("0001")):
        assert archive.main([str(sweep.folder.path)]) == 2
    with locks.holding(sweep.folder.launch_lock):
        assert archive.main([str(sweep.folder.path)]) == 2
    said = capsys.readouterr().err
    assert "a launcher trains submission 0001" in said and "another hpc.archive is at work" in said, said
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_link_out_of_the_sweep_is_refused_by_name(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    (sweep.of("se", 0).path / "data").symlink_to("/usr")
    with pytest.raises(ToolkitError, match=r"data: is a link out of the sweep, to /usr\. Put"):
        archive.archive(sweep.folder.path)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize(
    ("name", "words"), [("a.zip", "ends with .tar"), ("demo/a.tar", "lies in the sweep"), ("no/a.tar", "no such folder")]
)
def test_a_name_that_makes_no_sense_is_refused(tmp_path: Path, name: str, words: str) -> None:
    sweep = FakeSweep(tmp_path).finish_all()
    with pytest.raises(SubmissionError, match=words):
        archive.archive(sweep.folder.path, tmp_path / name)


def test_an_archive_is_never_replaced(made: tuple[FakeSweep, Path], tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match="exists"):
        archive.archive(made[0].folder.path)
    with pytest.raises(SubmissionError, match="exists"):
        archive.restore(made[1], tmp_path)


def test_a_disk_that_gives_other_bytes_back_leaves_no_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, real = FakeSweep(tmp_path).finish_all(), os.fsync

    def garble(handle: int) -> None:
        real(handle)
        if (draft := tmp_path / ".demo.tar.archiving").exists():
            payload = draft.read_bytes()
            draft.write_bytes(payload.replace(b"CIFAR-10", b"CIFAR-11", 1))

    monkeypatch.setattr(os, "fsync", garble)
    with pytest.raises(ToolkitError, match=r"result\.json\): bad disk"):
        archive.archive(sweep.folder.path)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_a_sweep_that_is_written_meanwhile_is_not_archived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, real = FakeSweep(tmp_path).finish_all(), archive_file.write

    def write(source: Path, *args: object, **kwargs: object) -> object:
        made = real(source, *args, **kwargs)  # type: ignore[arg-type]
        (sweep.of("se", 0).path / "late.txt").write_text("x")
        return made

    monkeypatch.setattr(archive_file, "write", write)
    with pytest.raises(SubmissionError, match="was changed while it was archived"):
        archive.archive(sweep.folder.path)


# --- damage ---


def test_an_archive_that_breaks_off_anywhere_is_named(
    made: tuple[FakeSweep, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, draw = made[1].read_bytes(), Random(0)
    path = tmp_path / "cut.tar"
    end = whole.rindex(b"archive.json")  # behind the list come zeros, which tar itself calls padding
    for size in [0, 1, 511, 512, 1024, end, *(draw.randrange(end) for _ in range(20))]:
        path.write_bytes(whole[:size])
        assert archive.main(["--verify", str(path)]) == 1, size
        assert archive.main(["--restore", str(path), str(tmp_path / "out")]) == 2 and not (tmp_path / "out").exists(), size
    assert "cut.tar: " in capsys.readouterr().err and [entry.name for entry in tmp_path.iterdir()] == ["cut.tar"]


def test_a_flipped_bit_is_found_or_changes_nothing(made: tuple[FakeSweep, Path], tmp_path: Path) -> None:
    whole, draw, found = made[1].read_bytes(), Random(1), 0
    for number in range(30):
        place = draw.randrange(len(whole))
        path = tmp_path / f"{number}.tar"
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << draw.randrange(8))]) + whole[place + 1 :])
        if archive.main(["--verify", str(path)]) == 1:
            found += 1
            continue
        archive.restore(path, tmp_path / f"{number}")
        assert snapshot(tmp_path / f"{number}") == snapshot(made[0].folder.path), place
    assert found > 10, f"only {found} of 30 were found"


def test_the_damaged_file_is_named(made: tuple[FakeSweep, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    payload = made[0].of("se", 1).result.read_bytes()
    (tmp_path / "bad.tar").write_bytes(made[1].read_bytes().replace(payload, payload.replace(b"CIFAR-10", b"CIFAR-11")))
    assert archive.main(["--verify", str(tmp_path / "bad.tar")]) == 1
    name = f"member demo/{made[0].of('se', 1).path.name}/result.json is damaged"
    assert name in capsys.readouterr().out
    assert collect.main([str(tmp_path / "bad.tar"), "--no-figures"]) == 2 and name in capsys.readouterr().err


# --- archives of somebody else's making ---


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", payload: bytes = b"") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(payload)
    return info, payload


def forged(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    """An archive with these members whose list agrees with them, as far as a list can."""
    entries = {}
    with tarfile.open(path, "w") as tar:
        for info, payload in (member("demo", tarfile.DIRTYPE), *members):
            tar.addfile(info, io.BytesIO(payload))
            kind = "folder" if info.isdir() else "link" if info.issym() else "file"
            way = info.name.partition("/")[2]
            entries[way] = archive_file.Entry(
                kind=kind, size=info.size, target=info.linkname, sha256=hashlib.sha256(payload).hexdigest() if kind == "file" else ""
            )
        info, payload = member("archive.json", payload=archive_file.Manifest(sweep="demo", records_only=False, entries=entries).to_bytes())
        tar.addfile(info, io.BytesIO(payload))
    return path


HOSTILE: dict[str, Callable[[], list[tuple[tarfile.TarInfo, bytes]]]] = {
    "above": lambda: [member("demo/../../evil", payload=b"x")],
    "absolute": lambda: [member("/tmp/evil", payload=b"x")],
    "link out": lambda: [member("demo/a", tarfile.SYMTYPE, "../../etc")],
    "absolute link": lambda: [member("demo/a", tarfile.SYMTYPE, "/etc")],
    "hard link": lambda: [member("demo/a", payload=b"x"), member("demo/b", tarfile.LNKTYPE, "demo/a")],
    "device": lambda: [member("demo/null", tarfile.CHRTYPE)],
    "pipe": lambda: [member("demo/pipe", tarfile.FIFOTYPE)],
    "below a link": lambda: [member("demo/a", tarfile.SYMTYPE, "b"), member("demo/a/c", payload=b"x")],
    "twice": lambda: [member("demo/a", payload=b"x"), member("demo/a", payload=b"y")],
    "long name": lambda: [member("demo/" + "n" * 5000, payload=b"x")],
    "deep name": lambda: [member("demo/" + "n/" * 200 + "x", payload=b"x")],
    "bomb in a header": lambda: [member("demo/" + "n" * 200_000, payload=b"x")],
    "empty part": lambda: [member("demo//a", payload=b"x")],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_member_is_refused_and_writes_nothing(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = forged(tmp_path / "evil.tar", *HOSTILE[kind]())
    assert archive.main(["--restore", str(path), str(tmp_path / "out")]) == 2
    assert collect.main([str(path), "--no-figures"]) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["evil.tar"], kind
    assert "Traceback" not in (said := capsys.readouterr().err) and "evil.tar: " in said, said


def test_a_plain_forgery_passes_so_the_refusals_above_are_for_their_members(tmp_path: Path) -> None:
    archive.restore(forged(tmp_path / "fair.tar", member("demo/a", payload=b"x"), member("demo/l", tarfile.SYMTYPE, "a")), tmp_path / "out")
    assert (tmp_path / "out" / "l").read_text() == "x"


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_compressed_archive_is_not_unpacked(made: tuple[FakeSweep, Path], tmp_path: Path, mode: str) -> None:
    with tarfile.open(tmp_path / "a.tar", mode) as tar:  # type: ignore[call-overload]
        tar.add(made[0].folder.plan, "demo/plan.json")
    assert archive.main(["--verify", str(tmp_path / "a.tar")]) == 1


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert archive.main(["--verify", str(tmp_path / "no.tar")]) == 2
    assert collect.main([str(tmp_path / "no.tar")]) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'no.tar'}: there is no such file.\n" * 2


def test_a_sweep_and_its_archive_together_are_refused_by_the_names_that_were_typed(
    made: tuple[FakeSweep, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path = str(made[0].folder.path), str(made[1])
    for first, second in ((folder, path), (path, folder)):
        assert collect.main([first, second, "--no-figures", "--output", str(tmp_path)]) == 2
        assert capsys.readouterr().err == f"{second}: sweep 'demo' was given already, as {first}. Give each sweep once.\n"
