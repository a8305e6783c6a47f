# Sourced by the script of every array and by sbatch/train.sh. When srun has returned 75 (on nodes whose Python has no scontrol nobody
# has requeued yet) or the supervisor was killed, look at the job, leave what is seen where the sweep's logs are (hpc/batch_word.py
# reads it), and requeue. The rule is hpc.requeue.judge, row by row; tests/hpc/test_requeue.py runs both.

end_task() { # CODE of srun, SIGNAL_DELAY_S of --signal, LOGS of the sweep
    case $1 in 75 | 134 | 135 | 137 | 139) _look_after "$@" ;; esac # ABRT, BUS, KILL, SEGV: nobody has asked for those
    exit "$1"
}

logs_of_one() { # Where the supervisor of a run without a launcher has put down that this job began it.
    local found=(runs/*/logs/begun-"${SLURM_CLUSTER_NAME:-slurm}-$(_own_job)".json)
    [ ! -e "${found[0]}" ] || printf '%s' "${found[0]%/*}"
}

_look_after() ( # CODE SIGNAL_DELAY_S LOGS. A subshell, because what it ignores its children ignore: signals come to all of us.
    trap '' INT TERM USR1 USR2
    job=$(_own_job) restarts=${SLURM_RESTART_COUNT:-0}
    if ! facts=$(_scontrol show job "$job"); then
        echo "batch: job=$job requeue=no: scontrol does not answer"
        return
    fi
    read -r ending requeue <<< "$(_judge "${facts%%$'\n\n'*}" "$restarts" "$2")"
    marks=${3:-/nonexistent}/batch-${SLURM_CLUSTER_NAME:-slurm}-$job
    if [ "$1" != 75 ]; then
        # Not interrupted either: whatever killed it right after a restart, such as its own memory, may do so again.
        case $ending in stopped | interrupted) ending=killed requeue=yes ;; esac
        # It draws from no budget of ours where it dies before it claims a run: 3 times a job, and not where that cannot be counted.
        [ "$(cat "$marks"-* 2> /dev/null | grep -vc ' 75$')" -lt 3 ] || requeue=no
    fi
    if [ "$ending" != stopped ] && ! { echo "$ending $1" > "$marks-$restarts"; } 2> /dev/null; then
        [ "$1" = 75 ] || requeue=no
    fi
    [ "$requeue" != yes ] || { echo "batch: job=$job requeue=yes" && _scontrol requeue "$job"; }
)

_own_job() { # hpc.slurm.own_job_id
    local job=${SLURM_JOB_ID:-}
    [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    printf '%s' "$job"
}

_judge() { # FACTS RESTART_COUNT SIGNAL_DELAY_S: the ending, and whether to requeue
    local facts=$1 state restarts preempted started ends
    state=$(_fact JobState) restarts=$(_fact Restarts)
    preempted=$(_seconds PreemptTime) started=$(_seconds StartTime) ends=$(_seconds EndTime)
    if [ -z "$state" ]; then echo stopped no
    elif [ "${restarts:-0}" -gt "$2" ]; then echo preempted no
    elif [[ $state == CANCELLED* ]]; then echo cancelled no
    elif [[ $state == NODE_FAIL* ]]; then echo node_failed yes
    elif [ -n "$preempted" ] && [ "$preempted" -ge "${started:-0}" ]; then echo preempted yes
    elif [ "$(_fact Reason)" = TimeLimit ] || [ "$state" = TIMEOUT ]; then echo timed_out yes
    elif [[ $state == OUT_OF_MEMORY* ]]; then echo out_of_memory no
    elif [ "$state" != RUNNING ] && [ "$state" != SIGNALING ]; then echo cancelled no
    # 65: requeue.SIGNAL_SLACK_S, 300: LATE_SIGNAL_S
    elif [ -n "$ends" ] && [ "$(date +%s)" -ge $((ends - $3 - 65)) ]; then echo timed_out yes
    elif [ "$2" -gt 0 ] && [ -n "$started" ] && [ "$(date +%s)" -le $((started + 300)) ]; then echo interrupted yes
    else echo stopped no
    fi
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
