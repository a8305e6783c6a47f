"""The text of `hpc.status --help` on its JSON document, apart from what makes it: --help must not wait for that."""

#: For --help. Times are unix seconds, percentages 0..100, null is "not known" or "does not apply".
JSON_HELP = """\
--json prints one document, schema 2 (keys are only ever added; percentages are 0..100, times unix seconds, null is unknown):
  sweep, time, held, scheduler_problem, notes, low_gpu_use, purge, done_time, gpu_hours, cpu_hours, states {state: runs},
  wandb {mode, runs {online, behind, offline, off: runs}}, runs [
    run_id, slug, arms, state, ending, reason, note (of its replays), epoch, epochs, test_top1_pct, val_top1_pct, epoch_s, eta_s,
    images_per_s and matmul_share_pct (of the last epoch),
    tier, attempts, node, task, job, pending_reason (Slurm's word), expected_start, gpu_hours, cpu_hours,
    log (below the sweep's folder), wandb {state, behind (epochs), why, address} or null ]"""
