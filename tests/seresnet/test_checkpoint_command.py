"""python -m seresnet.checkpoint on real run folders: what it finds, what it mends, what it leaves alone."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from seresnet import attempts, claims, journal, replay
from seresnet.attempts import Claim, Owner
from seresnet.checkpoint import find_runs, main
from seresnet.checkpoint_files import Header, digest_of, metadata, newest_trusted, read_metadata
from seresnet.durable import write_json_durably
from seresnet.errors import ConfigError
from seresnet.run_folder import RunFolder
from seresnet.tensor_file import with_metadata

FIXTURE = Path(__file__).resolve().parents[1] / "golden" / "formats" / "1" / "run"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run of two epochs of two steps, both boundaries saved; its owner has ended."""
    return Path(shutil.copytree(FIXTURE, tmp_path / "sweep" / "demo-s0-dffdc3e822a5"))


def files(run_dir: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in sorted(run_dir.rglob("*")) if path.is_file()}


def checkpoints(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "ckpt").glob("g*.safetensors"))


def flip(path: Path, place: int = -1) -> None:
    payload = bytearray(path.read_bytes())
    payload[place] ^= 1
    path.write_bytes(payload)


def unfinish(run_dir: Path) -> None:
    (run_dir / "result.json").unlink()


def test_a_good_run_verifies_and_nothing_changes(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(run_dir)
    assert main(["verify", str(run_dir)]) == 0 == main(["list", str(run_dir)])
    said = capsys.readouterr().out
    assert "ok, 2 good checkpoints, 2 epochs" in said and "finished after 2 epochs" in said and "epoch, best" in said, said
    assert files(run_dir) == before


@pytest.mark.parametrize("command", ["verify", "list"])
def test_a_start_that_was_ended_before_run_yaml_is_no_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    folder = RunFolder(path=tmp_path / "run")
    folder.create()
    generation = claims.acquire(folder, claims.this_process()).generation
    claims.write_end(folder, generation, "stopped", reason="SIGTERM before the first step", code=75)
    code, text = main([command, str(folder.path)]), capsys.readouterr().out
    assert code == 0 and "a start begins at step 0" in text and "No start gets past it" not in text, text
    folder.environment(generation).write_text("{}")  # it had begun: run.yaml was there
    if command == "verify":
        assert main([command, str(folder.path)]) == 1 and "run.yaml: cannot be read" in capsys.readouterr().out


def torn_journal(run_dir: Path) -> None:
    with open(run_dir / "metrics" / "g0001.jsonl", "ab") as file:
        file.write(b'{"epoch": 3, "st')


def other_result(run_dir: Path) -> None:
    value = json.loads((run_dir / "result.json").read_text())
    write_json_durably(run_dir / "result.json", {**value, "state_digest": "0" * 64})


def without_first_epoch(run_dir: Path) -> None:
    path = run_dir / "metrics" / "g0001.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[1])


def other_id(run_dir: Path) -> None:
    path = run_dir / "run.yaml"
    path.write_text(path.read_text().replace("lr: 0.05\n", "lr: 0.5\n"))


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda run: flip(checkpoints(run)[0]), "does not match its digest"),
    (lambda run: checkpoints(run)[0].write_bytes(b""), "does not match its digest"),
    (lambda run: checkpoints(run)[0].rename(run / "ckpt" / checkpoints(run)[0].name.replace("s000000002", "s000000003")), "under another"),
    (lambda run: (run / "ckpt" / "bad").mkdir() or checkpoints(run)[0].rename(run / "ckpt" / "bad" / checkpoints(run)[0].name), "is good"),
    (torn_journal, "metrics/g0001.jsonl: 1 line that is torn"),
    (without_first_epoch, "has no record of epoch 1"),
    (other_result, "state_digest is that of no final checkpoint"),
    (lambda run: (run / "result.json").write_text("{"), "result.json: not a result of this version"),
    (lambda run: (run / "run.yaml").write_text("a: ["), "run.yaml: cannot be read"),
    (other_id, "run.yaml: says run dffdc3e822a5"),
    (lambda run: (run / "attempts" / "000001.json").write_text("{"), "attempts/000001.json: not a claim"),
    (lambda run: (run / "attempts" / "000001.end.json").write_text("x"), "attempts/000001.end.json: not an end record"),
]


@pytest.mark.parametrize(("harm", "said"), DAMAGE, ids=[said[:30] for _, said in DAMAGE])
def test_damage_is_found_and_named(run_dir: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], object], said: str) -> None:
    harm(run_dir)
    before = files(run_dir)
    code, text = main(["verify", str(run_dir)]), capsys.readouterr().out
    assert code == 1 and "DAMAGED" in text and said in text, text
    assert files(run_dir) == before, "verify changed something"


@pytest.mark.parametrize("harm", [harm for harm, _ in DAMAGE[:5]], ids=[said[:30] for _, said in DAMAGE[:5]])
def test_repair_mends_what_can_be_mended_and_a_second_one_does_nothing(run_dir: Path, harm: Callable[[Path], object]) -> None:
    harm(run_dir)
    names = {digest_of(path.read_bytes()) for path in run_dir.rglob("*.safetensors")}
    before = files(run_dir)
    assert main(["repair", "--dry-run", str(run_dir)]) in (0, 1) and files(run_dir) == before
    assert main(["repair", str(run_dir)]) == 0 == main(["verify", str(run_dir)])
    assert {digest_of(path.read_bytes()) for path in run_dir.rglob("*.safetensors")} == names, "a checkpoint was deleted"
    after = files(run_dir)
    assert main(["repair", str(run_dir)]) == 0 and files(run_dir) == after


def test_a_torn_line_goes_and_a_copy_stays(run_dir: Path) -> None:
    torn_journal(run_dir)
    before = (run_dir / "metrics" / "g0001.jsonl").read_bytes()
    assert main(["repair", str(run_dir)]) == 0
    assert [path.read_bytes() for path in (run_dir / "metrics").glob("*.torn-*")] == [before]
    records, bad = journal.read_noting(RunFolder(path=run_dir))
    assert [record.epoch for record in records] == [1, 2] and bad == {}


def test_all_bad_moves_nothing_and_says_how_to_go_on(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinish(run_dir)
    for path in checkpoints(run_dir):
        flip(path)
    before, newest = files(run_dir), checkpoints(run_dir)[-1].name
    assert main(["repair", str(run_dir)]) == 1 and files(run_dir) == before
    said = capsys.readouterr().out
    assert f"best of all {newest}" in said and "start this run over: move" in said and "a start stops with an error" in said, said


def test_what_a_replay_set_aside_stays_there(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suspect = checkpoints(run_dir)[0]
    (run_dir / "ckpt" / "bad").mkdir()
    suspect.rename(run_dir / "ckpt" / "bad" / suspect.name)
    entry = {"number": 1, "what": "loss not finite", "step": 3, "from_step": 0, "hosts": ["n1"], "suspects": [suspect.name]}
    entry |= {"is_rewound": True, "outcome": "gone", "again_step": None}
    write_json_durably(run_dir / "attempts" / "000001.replay.json", {"schema": 1, "replays": [entry]})
    main(["repair", str(run_dir)])
    assert (run_dir / "ckpt" / "bad" / suspect.name).exists() and "replay" in capsys.readouterr().out


def test_a_whole_save_that_was_not_committed_is_kept_and_a_torn_one_removed(run_dir: Path) -> None:
    first = checkpoints(run_dir)[0]
    whole = run_dir / "ckpt" / f".{first.name}.0123456789ab.tmp"
    first.rename(whole)
    torn = run_dir / "ckpt" / f".g0001-s000000003-{'0' * 16}.safetensors.0123456789ab.tmp"
    torn.write_bytes(b"half")
    assert main(["repair", str(run_dir)]) == 0
    assert first.exists() and not whole.exists() and not torn.exists()


def test_what_a_newer_owner_is_writing_is_not_touched(run_dir: Path) -> None:
    temp = run_dir / "ckpt" / f".g0002-s000000005-{'0' * 16}.safetensors.0123456789ab.tmp"
    temp.write_bytes(b"half")
    main(["repair", str(run_dir)])
    assert temp.exists()


def test_a_run_that_somebody_owns_is_left_alone(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torn_journal(run_dir)
    folder = RunFolder(path=run_dir)
    assert attempts.publish_claim(folder, Claim(generation=2, owner=claims.this_process(), base=str(newest_trusted(folder))))
    heart = claims.Heart(folder, 2, lambda: None, interval_s=0.05).start()
    before = {name: content for name, content in files(run_dir).items() if not name.endswith(".beat")}
    try:
        code = main(["repair", str(run_dir)])
    finally:
        heart.stop()
    said = capsys.readouterr().err
    assert code == 77 and f"process {os.getpid()}" in said and "Nothing was changed" in said, said
    assert {name: content for name, content in files(run_dir).items() if not name.endswith(".beat")} == before


def test_a_base_that_is_gone_is_named(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, gone = RunFolder(path=run_dir), f"g0001-s000000003-{'0' * 16}.safetensors"
    unfinish(run_dir)
    assert attempts.publish_claim(folder, Claim(generation=2, owner=Owner(host="x", pid=1), base=gone))
    assert main(["verify", str(run_dir)]) == 1
    said = capsys.readouterr().out
    assert f"names {gone} as its base" in said and "a start goes on at step 2" in said, said


def own_checkpoint(run_dir: Path, generation: int, step: int, *, base: str) -> None:
    """The next attempt's claim on this base, and a checkpoint of its own."""
    assert attempts.publish_claim(RunFolder(path=run_dir), Claim(generation=generation, owner=Owner(host="x", pid=1), base=base))
    scalars = {**read_metadata(checkpoints(run_dir)[0].read_bytes())[1], "step": step}
    payload = with_metadata(checkpoints(run_dir)[0].read_bytes(), metadata(Header(generation=generation, step=step), scalars), {})
    (run_dir / "ckpt" / f"g{generation:04d}-s{step:09d}-{digest_of(payload)}.safetensors").write_bytes(payload)


def test_a_base_that_retention_has_deleted_is_no_damage(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every run that was preempted once and then saved three times."""
    unfinish(run_dir)
    own_checkpoint(run_dir, 2, 5, base=f"g0001-s000000003-{'0' * 16}.safetensors")
    code = main(["verify", str(run_dir)])
    said = capsys.readouterr().out
    assert code == 0 and "a start goes on at step 5" in said, said


def test_a_base_that_a_replay_has_set_aside_is_no_damage(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinish(run_dir)
    base = checkpoints(run_dir)[1]
    (run_dir / "ckpt" / "bad").mkdir()
    own_checkpoint(run_dir, 2, 2, base=base.name)
    base.rename(run_dir / "ckpt" / "bad" / base.name)
    replay.write(RunFolder(path=run_dir), 2, replay_of(base.name, is_rewound=True))
    code = main(["verify", str(run_dir)])
    said = capsys.readouterr().out
    assert code == 0 and "a start goes on at step 2" in said, said


def test_a_replay_that_was_cut_short_is_said(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinish(run_dir)
    replay.write(RunFolder(path=run_dir), 1, replay_of(checkpoints(run_dir)[1].name, is_rewound=False))
    assert main(["verify", str(run_dir)]) == 0
    said = capsys.readouterr().out
    assert "a start goes back to step 2 and replays from there: loss not finite at step 3" in said, said


def replay_of(suspect: str, *, is_rewound: bool) -> replay.Replay:
    return replay.Replay(number=1, what="loss not finite", step=3, from_step=2, hosts=("n1",), suspects=(suspect,), is_rewound=is_rewound)


def test_a_result_without_any_epoch_is_damage(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run_dir / "metrics")
    assert main(["verify", str(run_dir)]) == 1
    assert "metrics: has no record of epoch 1, 2" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", ["nan", "-1", "inf", "soon"])
def test_a_watch_of_no_time_at_all_is_refused(run_dir: Path, seconds: str) -> None:
    """`while watched < nan` never watches, and calls a living owner gone."""
    with pytest.raises(SystemExit) as caught:
        main(["repair", "--watch-s", seconds, str(run_dir)])
    assert caught.value.code == 2


def test_a_newer_versions_checkpoint_is_damage_that_repair_leaves(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinish(run_dir)
    entry = json.loads(metadata(Header(generation=1, step=9), {"step": 9})["seresnet"])
    payload = with_metadata(checkpoints(run_dir)[0].read_bytes(), {"seresnet": json.dumps({**entry, "schema": 9})}, {})
    path = run_dir / "ckpt" / f"g0001-s000000009-{digest_of(payload)}.safetensors"
    path.write_bytes(payload)
    assert main(["verify", str(run_dir)]) == 1 and main(["repair", str(run_dir)]) == 1 and path.exists()
    assert "checkpoint of schema 9" in capsys.readouterr().out


def test_a_sweep_is_all_its_runs_and_names_are_understood(run_dir: Path) -> None:
    sweep = run_dir.parent
    shutil.copytree(run_dir, sweep / "other-s1-0123456789ab")
    shutil.copytree(run_dir, sweep / "demo-s0-dffdc3e822a5.set-aside-0001")
    (sweep / "logs").mkdir()
    assert [found.path.name for found in find_runs(sweep)] == [run_dir.name, "other-s1-0123456789ab"]
    for name in ("demo-s0", "dffd", "dffdc3e822a5", run_dir.name, f"{run_dir.name}/ckpt", f"{run_dir.name}/run.yaml"):
        assert [found.path.resolve() for found in find_runs(sweep / name)] == [run_dir.resolve()], name
    assert [found.path.resolve() for found in find_runs(checkpoints(run_dir)[0])] == [run_dir.resolve()]


@pytest.mark.parametrize("name", ["nothing", "empty", "file.txt", "sweep/nobody"])
@pytest.mark.parametrize("command", ["list", "verify", "repair"])
def test_what_is_no_run_is_wrong_use_without_a_traceback(run_dir: Path, tmp_path: Path, command: str, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    assert main([command, str(tmp_path / name)]) == 2
    with pytest.raises(ConfigError, match=r"neither a run nor|no such run"):
        find_runs(tmp_path / name)


def test_an_empty_run_begins_at_step_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunFolder(path=tmp_path / "run").create()
    assert main(["list", str(tmp_path / "run")]) == 0
    assert "no checkpoint" in (said := capsys.readouterr().out) and "a start begins at step 0" in said, said


@pytest.mark.parametrize("columns", [80, 200])
def test_the_table_fits_the_screen(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    flip(checkpoints(run_dir)[0])
    main(["repair", str(run_dir)])
    monkeypatch.setenv("COLUMNS", str(columns))
    capsys.readouterr()
    assert main(["list", str(run_dir)]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert max(map(len, table)) <= columns, table
    assert sum("attempt" in line for line in table) == 2 and any("damaged" in line for line in table), table


def test_json_is_for_programs(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("list", "verify", "repair"):
        assert main([command, "--json", str(run_dir)]) == 0
        found = json.loads(capsys.readouterr().out)["runs"][0]
        assert found["run_id"] == "dffdc3e822a5" and [item["condition"] for item in found["checkpoints"]] == ["ok", "ok"], found


def test_help_is_quick_and_no_command_brings_torch(run_dir: Path) -> None:
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "seresnet.checkpoint", "--help"], capture_output=True, check=True)
    assert time.monotonic() - started < 3, "0.04 s on a quiet machine"
    code = f"import sys; from seresnet.checkpoint import main; main(['verify', {str(run_dir)!r}]); main(['repair', {str(run_dir)!r}])"
    code += "; print(*({'torch', 'rich', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].strip() == "", done.stdout
