#!/bin/bash
# One run without the launcher, with the same resume and requeue:
#   sbatch --account=ME --time=4:00:00 sbatch/train.sh configs/seresnet.yaml [optim.lr=0.05 ...]
# The same command line without sbatch trains here. Options of sbatch win over the lines below; --gres=none asks for no GPU.
# PYTHON=/path/to/python names another interpreter.
#SBATCH --job-name=train
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=2
#SBATCH --time=60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR2@60
python=${PYTHON:-python}
if [ -z "${SLURM_JOB_ID:-}" ] || ! command -v srun > /dev/null; then
    exec "$python" -m hpc.supervisor "$@"
fi

# Through srun: Python started straight from here would hear of a preemption only when its grace is over.
trap : TERM USR1 USR2
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$python" -m hpc.supervisor "$@"
code=$?
[ "$code" = 75 ] || exit "$code"

# Saved and told to stop. The supervisor has requeued this job if that was right and it had scontrol; in a container it has none,
# and then it is done here, by the same rule (docs/adr/0007): never without a sign of a preemption or of the time limit.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
facts=$(scontrol show job "$job") || exit "$code"
fact() { grep -oE "(^| )$1=[^ ]*" <<< "$facts" | head -n 1 | cut -d= -f2; }
[ "$(fact Restarts)" = "${SLURM_RESTART_COUNT:-0}" ] || exit "$code"
preempted=$(fact PreemptTime) started=$(fact StartTime) ends=$(date -d "$(fact EndTime)" +%s)
case $(fact JobState) in
    RUNNING) [[ $preempted == 2* && ! $preempted < $started ]] || [ $((ends - $(date +%s))) -le 125 ] || exit "$code" ;;
    *) [ "$(fact Reason)" = TimeLimit ] || exit "$code" ;;
esac
scontrol requeue "$job"
exit "$code"
