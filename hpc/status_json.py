"""What `hpc.status --json` prints: the words of the table without its cuts, for programs. Keys are only ever added within a schema."""

from typing import Any

from hpc import mirror_state
from hpc.progress_view import RunProgress
from hpc.spent import totals
from hpc.status_look import Look

SCHEMA = 2


def to_json(look: Look) -> dict[str, Any]:
    """The whole document."""
    hours = totals([row.spent for row in look.rows])
    states: dict[str, int] = {}
    for row in look.rows:
        states[row.run.state] = states.get(row.run.state, 0) + 1
    return {
        "schema": SCHEMA,
        "sweep": look.sweep.path.name,
        "time": look.time,
        "held": look.held,
        "scheduler_problem": look.queue.problem,
        "notes": list(look.notes),
        "low_gpu_use": list(look.low_use),
        "purge": list(look.purge),
        "done_time": look.done_time,
        "wandb": {"mode": look.plan.wandb.mode, "runs": mirror_state.counts(list(look.wandb.values()))},
        "gpu_hours": hours.get("gpu", 0.0),
        "cpu_hours": hours.get("cpu", 0.0),
        "states": states,
        "runs": [_run(look, row) for row in look.rows],
    }


def _run(look: Look, row: RunProgress) -> dict[str, Any]:
    run = row.run
    is_pending = look.queue.tasks.get(run.task or "") == "pending" and run.state in ("queued", "preempted")
    job = look.queue.jobs.get(run.task or "") if is_pending else None
    hours = totals([row.spent])
    return {
        "run_id": run.run_id,
        "slug": run.slug,
        "arms": list(run.arms),
        "state": run.state,
        "ending": run.ending,
        "reason": run.reason,
        "epoch": row.epoch,
        "epochs": row.epochs,
        "test_top1_pct": row.test_top1_pct,
        "val_top1_pct": row.val_top1_pct,
        "epoch_s": row.epoch_s,
        "images_per_s": row.images_per_s,
        "matmul_share_pct": row.matmul_share_pct,
        "eta_s": row.eta_s,
        "note": run.note,
        "tier": row.tier,
        "attempts": run.attempts,
        "node": run.node,
        "task": run.task,
        "job": job.job_id if job else run.job,
        "pending_reason": job.reason if job else None,
        "expected_start": job.start if job else None,
        "gpu_hours": hours.get("gpu", 0.0),
        "cpu_hours": hours.get("cpu", 0.0),
        "wandb": mirror_state.to_json(look.wandb.get(run.run_id)),
        "log": str(run.folder.log.relative_to(look.sweep.path)),
    }
