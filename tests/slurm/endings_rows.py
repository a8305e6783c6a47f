"""The rows of the table of endings, in waves: what each does to a job, and what must be recorded, requeued and drawn from a budget.

What a row needs is said by endings_table; what a rank does by the acts of tests/hpc/rank_program.py. A lost rank, supervisor or node of a
run on two nodes is in test_nodes_slurm.py.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster import Cluster
from endings_table import Row, Seen, Wave
from scenes import Scene, gate, open_gate, python_behind_gate, submit, submit_single, wait_for, wait_until_at_gate

from hpc import hold
from hpc.paths import SweepFolder

ARRAY, TRAIN_SH, PACK, IN_TURN = "array task", "train.sh", "pack, 2 at once", "pack, in turn"
CONTAINER, TRAIN_SH_CONTAINER = "no scontrol", "train.sh, no scontrol"

Send = Callable[[Cluster, Path], Scene]


def array(*acts: str, **options: Any) -> Send:
    return lambda cluster, folder: submit(cluster, folder, *acts, **options)


def pack(*acts: str, at_a_time: int, **options: Any) -> Send:
    names = [f"run{index}" for index in range(len(acts))]
    return lambda cluster, folder: submit(cluster, folder, *acts, packs=[names], at_a_time=at_a_time, **options)


def train_sh(acts: str, **options: Any) -> Send:
    return lambda cluster, folder: submit_single(cluster, folder, acts, **options)


def gated_setup(acts: str) -> Send:
    return lambda cluster, folder: submit(cluster, folder, acts, setup=[gate(folder)])


def gated_python(acts: str) -> Send:
    return lambda cluster, folder: submit(cluster, folder, acts, python=python_behind_gate(folder))


# --- when it is ready ---


def pack_serves(scene: Scene) -> None:
    for run in ("run0", "run1"):
        scene.wait_until_serving(run)


def at_once(scene: Scene) -> None:
    pass


# --- what is done ---


def evict(wave: Wave) -> None:
    cluster = wave.disturber.cluster
    for node in sorted({cluster.show_job(scene.task())["NodeList"] for scene in wave.scenes}):
        cluster.fill(node, seconds=3)


def evict_with_user_signal(wave: Wave) -> None:
    """As on a site whose preempted jobs are sent the --signal that they asked for, and no SIGTERM."""
    with _send_user_signal(wave.disturber.cluster):
        evict(wave)
        for scene in wave.scenes:
            _wait_until_preempted(wave, scene)


@contextmanager
def _send_user_signal(cluster: Cluster) -> Iterator[None]:
    conf = cluster.path / "slurm.conf"
    before = conf.read_text()
    try:
        conf.write_text(before.replace("SchedulerParameters=", "SchedulerParameters=preempt_send_user_signal,"))
        cluster.command("scontrol", "reconfigure")
        yield
    finally:
        conf.write_text(before)
        cluster.command("scontrol", "reconfigure")


def _wait_until_preempted(wave: Wave, scene: Scene) -> None:
    show = wave.disturber.cluster.show_job
    wait_for(lambda: "1" if show(scene.task()).get("PreemptTime", "None") != "None" else "", "preempted", scene.say)


def open_when_preempted(wave: Wave, scene: Scene) -> None:
    _wait_until_preempted(wave, scene)
    open_gate(scene)


def lose_node(wave: Wave) -> None:
    wave.disturber.node_lost(wave.scenes[0].task())


def cut_off_and_evict(wave: Wave) -> None:
    """One node is cut off from Slurm; everything on both is evicted, of which the one that is cut off cannot hear."""
    cluster = wave.disturber.cluster
    where = {cluster.show_job(scene.task())["NodeList"]: scene.task() for scene in wave.scenes}
    if "n1" in where:
        wave.disturber.node_cut_off(where["n1"])
    for node in where:
        cluster.fill(node, seconds=3)


def out_of_time(wave: Wave, scene: Scene) -> None:
    wave.disturber.out_of_time(scene.task())


def cancelled_by_user(wave: Wave, scene: Scene) -> None:
    scene.cluster.run_as_user(["scancel", scene.task()])


def cancelled_by_root(wave: Wave, scene: Scene) -> None:
    scene.cluster.command("scancel", scene.task())


def signalled(*names: str) -> Callable[[Wave, Scene], None]:
    def act(wave: Wave, scene: Scene) -> None:
        for name in names:
            scene.cluster.run_as_user(["scancel", f"--signal={name}", scene.task()], check=False)

    return act


def signalled_by_hand_and_slurm(wave: Wave, scene: Scene) -> None:
    _wait_until_preempted(wave, scene)
    signalled("USR2", "TERM", "USR2")(wave, scene)


def cancelled_in_the_grace(wave: Wave, scene: Scene) -> None:
    _wait_until_preempted(wave, scene)
    cancelled_by_user(wave, scene)


def requeued_by_hand(wave: Wave, scene: Scene) -> None:
    wave.disturber.requeued_by_hand(scene.task())


def requeued_and_signalled(wave: Wave, scene: Scene) -> None:
    """What a signal is like that Slurm sent to an attempt before and could not deliver then."""
    requeued_by_hand(wave, scene)
    scene.wait_until_serving(generation=2)
    signalled("TERM")(wave, scene)


def rank_killed(wave: Wave, scene: Scene) -> None:
    os.kill(scene.wait_until_serving(), signal.SIGKILL)


def supervisor_killed(wave: Wave, scene: Scene) -> None:
    stat = Path(f"/proc/{scene.wait_until_serving()}/stat").read_text()
    os.kill(int(stat.rpartition(")")[2].split()[1]), signal.SIGKILL)


def held_before_it_began(wave: Wave, scene: Scene) -> None:
    hold.hold(SweepFolder(scene.sweep), "user", "to look at it")
    scene.cluster.give_to_user(scene.sweep)
    open_gate(scene)


# --- the rows ---


def came_back(classes: str = "preempted, finished", by: str = "supervisor", budget: str = "-") -> tuple[Seen, ...]:
    return (Seen(classes=classes, requeued=by, budget=budget),)


def late(by: str) -> tuple[Seen, ...]:
    """A signal right after `scontrol requeue`; how the attempt before ended is a matter of moments."""
    return tuple(
        Seen(classes=f"{first}, interrupted, finished", requeued=f"{by}, the user", budget=budget)
        for first in ("preempted", "node_failed*", "stopped", "stopped*")
        for budget in ("-", "evictions, - x2")
    )


def gone(classes: str, state: str, budget: str = "-") -> tuple[Seen, ...]:
    return (Seen(classes=classes, budget=budget, state=state),)


def _row(what: str, job: str, send: Send, expect: tuple[Seen, ...], act: Any = None, **more: Any) -> Row:
    return Row(what=what, job=job, send=send, expect=expect, **({"act": act} if act else {}), **more)


def _evicted(what: str, job: str, send: Send, expect: tuple[Seen, ...], act: Any = None, **more: Any) -> Row:
    return _row(what, job, send, expect, act, is_struck=True, **more)


SERVE = "serve; finish"
BY_SHELL = came_back(by="batch script")
TIME_BY_SHELL = came_back("timed_out, finished", "batch script", "time limits, -")
NO_GRACE = tuple(
    Seen(classes=f"{seen}, finished", requeued="Slurm", budget=budget)
    for seen in ("preempted", "node_failed*", "stopped*")
    for budget in ("-", "evictions, -")
)
EVICTIONS = Wave(
    strike=evict,
    is_slow=False,
    rows=[
        _evicted("preempted, REQUEUE, 10 s grace", ARRAY, array(SERVE), came_back()),
        _evicted("preempted, CANCEL, 10 s grace", ARRAY, array(SERVE, partition="cancel"), came_back()),
        _evicted("preempted, no grace", ARRAY, array(SERVE, partition="abrupt"), NO_GRACE),
        _evicted("preempted, REQUEUE, 10 s grace", CONTAINER, array(SERVE, has_scontrol=False), BY_SHELL),
        _evicted("preempted, CANCEL, 10 s grace", CONTAINER, array(SERVE, has_scontrol=False, partition="cancel"), BY_SHELL),
        _evicted("preempted, REQUEUE, 10 s grace", TRAIN_SH, train_sh(SERVE), came_back()),
        _evicted("preempted, REQUEUE, 10 s grace", TRAIN_SH_CONTAINER, train_sh(SERVE, has_scontrol=False), BY_SHELL),
    ],
)
LATE_SAVE = came_back(budget="evictions, -") + came_back(by="Slurm", budget="evictions, -")
MOMENTS = Wave(
    strike=evict,
    rows=[
        _evicted("preempted in the setup lines", ARRAY, gated_setup("finish"), came_back("finished"), open_when_preempted,
                 ready=wait_until_at_gate),
        _evicted("preempted before Python's handlers", ARRAY, gated_python("finish"), came_back("finished"), open_when_preempted,
                 ready=wait_until_at_gate),
        _evicted("preempted while a rank starts (4 s)", ARRAY, array("starting 4 preparing; finish"), came_back(budget="evictions, -")),
        _evicted("preempted in data preparation", ARRAY, array("preparing; finish"), came_back(budget="evictions, -")),
        _evicted("preempted in validation", ARRAY, array("validating; finish"), came_back()),
        _evicted("preempted, the save takes 4 s", ARRAY, array("saving 4; finish"), came_back()),
        _evicted("preempted, the save takes 60 s", ARRAY, array("save saving 60; finish"),
                 came_back() + came_back(by="Slurm"), says='"base": "g0001-s000000010-'),
        _evicted("CANCEL, the save takes 60 s", ARRAY, array("saving 60; finish", partition="cancel"), LATE_SAVE),
    ],
)  # fmt: skip
BOTH_BACK = came_back("preempted, finished / preempted, finished / finished", budget="- / - / -")
TWO_AND_ONE = (SERVE, SERVE, "finish")
USER_SIGNAL = Wave(
    strike=evict_with_user_signal,
    rows=[
        _evicted("preempted, USR2 instead of TERM", ARRAY, array(SERVE), came_back()),
        _evicted("preempted, USR2 instead of TERM", CONTAINER, array(SERVE, has_scontrol=False), BY_SHELL),
        _evicted("preempted, USR2 instead of TERM", TRAIN_SH, train_sh(SERVE), came_back()),
        _evicted("preempted, no --signal asked for", ARRAY, array(SERVE, signal_delay_s=0), came_back()),
        _evicted("preempted; USR2, TERM, USR2 while it saves", ARRAY, array("saving 3; finish"), came_back(), signalled_by_hand_and_slurm),
        _evicted("preempted", PACK, pack(*TWO_AND_ONE, at_a_time=2), BOTH_BACK, ready=pack_serves),
    ],
)  # fmt: skip
ON_N1, ON_N2 = {"sbatch": {"nodelist": "n1"}}, {"sbatch": {"nodelist": "n2"}}
LOST = came_back("node_failed*, finished", "Slurm", "evictions, -")
BOTH_LOST = came_back("node_failed*, finished / node_failed*, finished / finished", "Slurm", "evictions, - / evictions, - / -")
TIMED_OUT = came_back("timed_out, finished", budget="time limits, -")
NODES_AND_TIME = Wave(
    strike=lose_node,
    rows=[
        _evicted("node lost, comes back", ARRAY, array(SERVE, **ON_N1), LOST),
        _evicted("node lost, comes back", TRAIN_SH, train_sh(SERVE, options=["-w", "n1"]), LOST),
        _evicted("node lost, comes back", PACK, pack(*TWO_AND_ONE, at_a_time=2, **ON_N1), BOTH_LOST, ready=pack_serves),
        _row("time limit, USR2 before it", ARRAY, array(SERVE, **ON_N2), TIMED_OUT, out_of_time),
        _row("time limit, no --signal asked for", ARRAY, array(SERVE, signal_delay_s=0, **ON_N2), TIMED_OUT, out_of_time),
        _row("time limit", CONTAINER, array(SERVE, has_scontrol=False, **ON_N2), TIME_BY_SHELL, out_of_time),
        _row("45 s before the limit, no signal", ARRAY, array(SERVE, walltime_min=1, signal_delay_s=0, **ON_N2), TIMED_OUT,
             says="deadline"),
    ],
)  # fmt: skip
#: What lives on may save before it sees that it has lost its run. An srun that saw its step die has it killed, which is heard late, too.
LATE_AND_LOST = (
    *came_back("node_failed*, interrupted, finished", "supervisor, Slurm"),
    *came_back("node_failed*, interrupted, finished", "supervisor, Slurm", "evictions, - x2"),
    *came_back("node_failed*, killed*, finished", "batch script, Slurm", "-, failures, -"),
    *came_back("node_failed*, killed*, finished", "batch script, Slurm", "evictions, failures, -"),
)
CUT_OFF = Wave(
    strike=cut_off_and_evict,
    rows=[
        _evicted("node cut off, its processes live on", ARRAY, array(SERVE, **ON_N1), LOST),
        # slurmctld tries again a minute later, and finds the next attempt.
        _evicted("evicted while cut off, heard late", ARRAY, array("serve; serve; finish", **ON_N1), LATE_AND_LOST),
        # Slurm says COMPLETING with a PreemptTime, as it does when a grace is over: it may come back once (ADR 7, Consequences).
        _evicted("scancel in the grace, while it saves", ARRAY, array("saving 4; finish", **ON_N2), came_back(), cancelled_in_the_grace),
        _evicted("scancel in the grace, while it saves", CONTAINER, array("saving 4; finish", has_scontrol=False, **ON_N2), BY_SHELL,
                 cancelled_in_the_grace),
    ],
)  # fmt: skip
THRICE = "exit 1; exit 1; exit 1; finish"
WATCHDOG = {"setup": ["export SERESNET_WATCHDOG_S=0.5"]}
BY_HAND = (
    *came_back(by="the user"),
    *came_back(by="the user", budget="evictions, -"),
    *came_back("node_failed*, finished", "the user", "evictions, -"),
)
STOPPED = gone("stopped", "FAILED 75")
ALONE = Wave(
    is_slow=False,
    rows=[
        _row("time limit", TRAIN_SH, train_sh(SERVE), TIMED_OUT, out_of_time),
        _row("time limit", TRAIN_SH_CONTAINER, train_sh(SERVE, has_scontrol=False), TIME_BY_SHELL, out_of_time),
        _row("scancel by the user", ARRAY, array(SERVE), gone("cancelled", "CANCELLED"), cancelled_by_user),
        _row("scancel by root", ARRAY, array(SERVE), gone("cancelled_by_site", "CANCELLED"), cancelled_by_root),
        _row("scancel by the user", CONTAINER, array(SERVE, has_scontrol=False), gone("cancelled", "CANCELLED"), cancelled_by_user),
        _row("scancel by the user", TRAIN_SH, train_sh(SERVE), gone("cancelled", "CANCELLED"), cancelled_by_user),
        _row("scancel by the user", TRAIN_SH_CONTAINER, train_sh(SERVE, has_scontrol=False), gone("cancelled", "CANCELLED"),
             cancelled_by_user),
        _row("TERM, USR2, TERM by the user", ARRAY, array(SERVE), STOPPED, signalled("TERM", "USR2", "TERM")),
        _row("TERM, USR2, TERM by the user", CONTAINER, array(SERVE, has_scontrol=False), STOPPED, signalled("TERM", "USR2", "TERM")),
        _row("scontrol requeue", ARRAY, array(SERVE), BY_HAND, requeued_by_hand, requeuer="the user"),
        _row("TERM right after a restart", ARRAY, array("serve; serve; finish"), late("supervisor"), requeued_and_signalled,
             requeuer="the user"),
        _row("TERM right after a restart", CONTAINER, array("serve; serve; finish", has_scontrol=False), late("batch script"),
             requeued_and_signalled, requeuer="the user"),
        _row("rank killed with -9", ARRAY, array(SERVE), (Seen(classes="killed, finished", budget="failures, -"),), rank_killed,
             says="memory cgroup"),
        _row("supervisor killed with -9", ARRAY, array(SERVE), came_back("killed*, finished", "batch script", "failures, -"),
             supervisor_killed),
        _row("supervisor killed with -9", TRAIN_SH_CONTAINER, train_sh(SERVE, has_scontrol=False),
             came_back("killed*, finished", "batch script", "failures, -"), supervisor_killed),
        _row("GPU out of memory (exit 80)", IN_TURN, pack("exit 80; await run1/result.json finish", "finish", at_a_time=1),
             (Seen(classes="out_of_memory, finished / finished", budget="failures, - / -"),), ready=at_once),
        _row("host memory refused (MemoryError)", PACK, pack("starve; finish", "finish", at_a_time=2),
             (Seen(classes="out_of_memory, finished / finished", budget="failures, - / -"),), ready=at_once),
        _row("crash (exit 1), three times", ARRAY, array(THRICE), gone("crashed x3", "FAILED 1", "failures x3"), ready=at_once),
        _row("crash after a save, four times", ARRAY, array("save exit 1; save exit 1; save exit 1; save exit 1"),
             (Seen(classes="crashed x4, finished"),), ready=at_once),
        _row("hang, seen by its own watchdog", PACK, pack("hang; finish", "finish", at_a_time=2, **WATCHDOG),
             (Seen(classes="hung, finished / finished", budget="failures, - / -"),), ready=at_once),
        _row("rank stopped (SIGSTOP)", ARRAY, array("freeze; finish"), (Seen(classes="hung, finished", budget="failures, -"),),
             ready=at_once),
        _row("user error (exit 78)", IN_TURN, pack("exit 78", "finish", at_a_time=1), gone("user_error / finished", "FAILED 78", "- / -"),
             ready=at_once),
        _row("diverged (exit 79)", IN_TURN, pack("exit 79", "finish", at_a_time=1), gone("diverged / finished", "FAILED 79", "- / -"),
             ready=at_once),
        _row("sweep held before the task began", ARRAY, gated_setup("finish"), gone("-", "COMPLETED"), held_before_it_began,
             ready=wait_until_at_gate),
        _row("nothing", ARRAY, array("finish"), (Seen(classes="finished"),), ready=at_once),
    ],
)  # fmt: skip
WAVES = (EVICTIONS, MOMENTS, USER_SIGNAL, CUT_OFF, NODES_AND_TIME, ALONE)
