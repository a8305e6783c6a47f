"""Two owners of one run: started at once, or one of them stopped beyond the limit and continued when another has taken over."""

import signal
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import owner_hooks
import pytest
import ranks as ring

from seresnet import checkpoint_files, claims, journal
from seresnet.run_folder import RunFolder, TrainResult

EPOCHS, RACE_EPOCHS = 3, 2
HOOK = "owner_hooks:install"
#: Beside the moments of owner_hooks: from outside, at any time, and with all ranks, as Slurm suspends a job.
OUTSIDE = {"at any time": 1, "two ranks at any time": 2}
AT_FIRST = ("before the link of result.json", "two ranks at any time", "before a checkpoint's rename", "before run.yaml is made")
MOMENTS = (*AT_FIRST, *(moment for moment in (*owner_hooks.MOMENTS, *OUTSIDE) if moment not in AT_FIRST))


@pytest.fixture(scope="session")
def alone(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], TrainResult]:
    """What runs of so many ranks and epochs come to that have one owner."""
    results = {}
    for size, epochs in ((1, RACE_EPOCHS), (1, EPOCHS), (2, EPOCHS)):
        folder = tmp_path_factory.mktemp(f"alone-{size}-{epochs}")
        results[size, epochs] = ring.finish(ring.tiny_config(folder, digits_dir, size, epochs=epochs), folder / "run", size)
    return results


def output_of(run_dir: Path) -> str:
    return (run_dir.parent / "output.txt").read_text()[-4000:]


# --- at once ---


def assert_one_trains(owners: int, place: Path, data_dir: Path, expected: TrainResult) -> None:
    """Start them in the same moment: one trains, the others leave everything as it is."""
    config, run_dir, gun = ring.tiny_config(place, data_dir, 1, epochs=RACE_EPOCHS), place / "run", place / "start"
    environ = {"OWNER_START": str(gun), "OWNER_OBSERVE_S": str(owner_hooks.PATIENT_S)}
    processes = [ring.start(config, run_dir, 1, hook=HOOK, environ=environ)[0] for _ in range(owners)]
    ring.wait_until(lambda: len(list(place.glob("start-*"))) == owners)
    gun.touch()
    ring.wait_until(lambda: not any(process.is_alive() for process in processes), limit_s=2 * owner_hooks.PATIENT_S)
    codes = sorted(process.exitcode or 0 for process in processes)
    late = output_of(run_dir).count("finished before; nothing to do")
    assert codes == [0] * (1 + late) + [77] * (owners - 1 - late), f"exit codes {codes}\n{output_of(run_dir)}"
    folder = RunFolder(path=run_dir)
    assert [claim.generation for claim in claims.read_claims(folder)] == [1], "more than one claim of one training"
    others = [path.name for path in folder.attempts.iterdir() if not path.name.startswith("000001.")]
    steps = [line["step"] for line in ring.journal_lines(run_dir)]
    result = TrainResult.read(folder)
    assert result is not None and result.state_digest == expected.state_digest
    assert (others, steps) == ([], sorted(set(steps))), f"the losers left {others}, journal {steps}"


@pytest.mark.timeout(1800)
def test_of_owners_that_start_at_once_one_trains(digits_dir: Path, alone: dict, amount, report, tmp_path: Path) -> None:
    rounds = amount(2, 8, 100)
    for number in range(rounds):
        place = tmp_path / str(number)
        place.mkdir()
        assert_one_trains(2 if number % 2 == 0 else 4, place, digits_dir, alone[1, RACE_EPOCHS])
    report("two and four owners at once", f"{rounds} starts", f"{rounds} of {rounds}: one claim, the others exit 77 and change nothing")


# --- stopped, and continued ---


class Scene:
    """One run whose first owner sleeps while a second one takes over."""

    def __init__(self, place: Path, data_dir: Path, size: int) -> None:
        self.config = ring.tiny_config(place, data_dir, size, epochs=EPOCHS)
        self.run_dir, self.size = place / "run", size
        self.folder = RunFolder(path=self.run_dir)

    def start(self, environ: Mapping[str, str]) -> list[ring.Rank]:
        return ring.start(self.config, self.run_dir, self.size, hook=HOOK, environ=environ)

    def put_to_sleep(self, moment: str) -> list[ring.Rank]:
        """An owner, all of whose ranks are stopped: by itself in the middle of a call, or by us."""
        if moment not in OUTSIDE:
            (process,) = ranks = self.start({"OWNER_STOP_AT": moment})
        else:
            process, *_ = ranks = self.start({})
            ring.wait_until(lambda: len(checkpoint_files.list_checkpoints(self.folder)) > 1)
            ring.send(ranks, signal.SIGSTOP)
        ring.wait_until(lambda: _state(process) == "T" or not process.is_alive())
        assert process.is_alive(), f"{moment}: it ended before, with {process.exitcode}\n{output_of(self.run_dir)}"
        return ranks

    def contents(self) -> dict[str, bytes]:
        paths = (path for path in self.run_dir.rglob("*") if path.is_file() and path.name != "log.txt")
        return {str(path.relative_to(self.run_dir)): path.read_bytes() for path in paths}


def _state(process: ring.Rank) -> str | None:
    state = claims.process_state(process.pid or 0)
    return None if state is None else state[0]


def assert_a_zombie_leaves(moment: str, is_late: bool, place: Path, data_dir: Path, alone: dict[tuple[int, int], TrainResult]) -> None:
    """is_late: it wakes up when the run is finished, not while its successor trains."""
    place.mkdir()
    scene = Scene(place, data_dir, OUTSIDE.get(moment, 1))
    sleepers = scene.put_to_sleep(moment)
    successors = scene.start({})
    ring.wait_until(lambda: claims.newest_generation(scene.folder) == 2)
    codes = ring.join_all(successors) if is_late else None
    before = scene.contents()
    ring.send(sleepers, signal.SIGCONT)
    zombies = ring.join_all(sleepers)
    after = scene.contents()
    codes = codes or ring.join_all(successors)
    story = f"asleep {moment}, woken {'late' if is_late else 'early'}: exit codes {zombies}, of its successor {codes}\n"
    assert (zombies[0], codes) == (77, [0] * scene.size), story + output_of(scene.run_dir)
    if is_late:
        assert_wrote_only_of_its_own(before, after, story)
    assert_the_successors_run(scene, alone[scene.size, EPOCHS], story)


def assert_wrote_only_of_its_own(before: dict[str, bytes], after: dict[str, bytes], story: str) -> None:
    """A zombie finishes the system call in which it slept, under its own number, and says how it ended."""
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    own = {name for name in changed if Path(name).name.startswith(("000001.", ".000001.", "g0001", ".g0001", ".r"))}
    assert changed == own, f"{story}it changed {sorted(changed - own)}"
    made = [name for name in after if name not in before and name.startswith("ckpt/")]
    assert len(made) <= 1, f"{story}it saved {made}"
    assert "attempts/000001.end.json" not in changed, f"{story}it replaced the end that was inferred of it"


def assert_the_successors_run(scene: Scene, expected: TrainResult, story: str) -> None:
    result, end = TrainResult.read(scene.folder), claims.read_end(scene.folder, 1)
    assert result is not None and result.state_digest == expected.state_digest, f"{story}the state differs"
    assert (result.attempts, result.tier) == (2, "T1"), f"{story}{result}"
    assert end is not None and (end.ending, end.inferred) == ("unknown", True), f"{story}{end}"
    assert [claim.generation for claim in claims.read_claims(scene.folder)] == [1, 2], story
    assert [record.epoch for record in journal.read(scene.folder)] == [1, 2, 3], story
    newest = checkpoint_files.newest_trusted(scene.folder)
    assert newest is not None and newest.generation == 2, f"{story}the next attempt would start from {newest}"


@pytest.mark.timeout(1800)
def test_a_stopped_owner_that_is_continued_exits_77_and_writes_nothing_newer(
    digits_dir: Path, alone: dict, amount, report, tmp_path: Path
) -> None:
    cases = amount(3, len(MOMENTS) + 2, 30)
    with ThreadPoolExecutor(3) as pool:  # they mostly watch a beat
        futures = []
        for case in range(cases):
            moment, is_late = MOMENTS[case % len(MOMENTS)], (case // len(MOMENTS)) % 2 == 0
            futures.append(pool.submit(assert_a_zombie_leaves, moment, is_late, tmp_path / str(case), digits_dir, alone))
    for future in futures:
        future.result()
    report("owner stopped past the limit, then continued", f"{cases} zombies", f"{cases} of {cases} exit 77, nothing newer, equal digests")
