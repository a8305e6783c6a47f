# Sourced by the script of every array and by sbatch/train.sh, for nodes whose Python has no scontrol (containers): after srun has
# returned 75, look at the job and requeue it. The rule is hpc.requeue.judge, row by row; tests/hpc/test_requeue.py runs both.

end_task() { # CODE of srun, SIGNAL_DELAY_S of --signal
    [ "$1" != 75 ] || requeue_if_asked "$2"
    exit "$1"
}

requeue_if_asked() ( # SIGNAL_DELAY_S. A subshell, because what it ignores its children ignore: signals come to all of us.
    trap '' INT TERM USR1 USR2
    job=${SLURM_JOB_ID:-}
    [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    if ! facts=$(_scontrol show job "$job"); then
        echo "batch: job=$job requeue=no: scontrol does not answer"
    elif _must_requeue "${facts%%$'\n\n'*}" "${SLURM_RESTART_COUNT:-0}" "$1"; then
        echo "batch: job=$job requeue=yes"
        _scontrol requeue "$job"
    fi
)

_must_requeue() { # FACTS RESTART_COUNT SIGNAL_DELAY_S
    local facts=$1 state restarts preempted started ends
    state=$(_fact JobState) restarts=$(_fact Restarts)
    preempted=$(_seconds PreemptTime) started=$(_seconds StartTime) ends=$(_seconds EndTime)
    [ -n "$state" ] && [ "${restarts:-0}" -le "$2" ] && [[ $state != CANCELLED* ]] || return 1
    if [ -n "$preempted" ] && [ "$preempted" -ge "${started:-0}" ]; then return 0; fi
    if [ "$(_fact Reason)" = TimeLimit ] || [ "$state" = TIMEOUT ] || [[ $state == NODE_FAIL* ]]; then return 0; fi
    # 65: requeue.SIGNAL_SLACK_S
    [ "$state" = RUNNING ] && [ -n "$ends" ] && [ "$(date +%s)" -ge $((ends - $3 - 65)) ]
}

_fact() { [[ $facts =~ (^|[[:space:]])$1=([^[:space:]]*) ]] && printf '%s' "${BASH_REMATCH[2]}"; }

_seconds() { # None, Unknown and N/A are no time
    local text
    text=$(_fact "$1")
    [[ $text =~ ^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}$ ]] && date -d "$text" +%s
}

_scontrol() { # Twice 5 s: it is slow when many jobs are evicted together.
    local try answer
    for try in 1 2; do
        # timeout undoes the ignoring for its child, hence the second trap.
        if answer=$(SLURM_TIME_FORMAT=standard timeout -s KILL 5 bash -c 'trap "" INT TERM USR1 USR2; exec scontrol "$@"' "try $try" "$@"); then
            printf '%s\n' "$answer"
            return 0
        fi
    done
    return 1
}
