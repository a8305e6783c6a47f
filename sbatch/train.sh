#!/bin/bash
# One run without the launcher, with the same resume and requeue:
#   sbatch --account=ME --time=4:00:00 sbatch/train.sh configs/seresnet.yaml [optim.lr=0.05 ...]
# The same command line without sbatch trains here. Options of sbatch win over the lines below; --gres=none asks for no GPU.
# PYTHON=/path/to/python names another interpreter than .venv/bin/python, or python where there is none.
#SBATCH --job-name=train
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=2
#SBATCH --time=60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR2@60
python=${PYTHON:-python}
[ -n "${PYTHON:-}" ] || ! [ -x .venv/bin/python ] || python=.venv/bin/python
unset PYTHONSAFEPATH # with it `python -m` would not find the code of the folder that we are in
if [ -z "${SLURM_JOB_ID:-}" ] || ! command -v srun > /dev/null; then
    exec "$python" -m hpc.supervisor "$@"
fi

# Through srun: Python started straight from here would hear of a preemption only when its grace is over.
trap : TERM USR1 USR2
rule=hpc/requeue.sh
[ -f "$rule" ] || rule=$("$python" -c 'import hpc; print(hpc.__path__[0])')/requeue.sh
source "$rule" || { echo "$rule is not to be had: submit from the folder that holds hpc/ and sbatch/" >&2; exit 78; }
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$python" -m hpc.supervisor "$@"
# 75: saved and told to stop. The supervisor has requeued this job if that was right and it had scontrol; in a container it has none,
# and then it is done here, by the same rule (docs/adr/0007). 60 as in --signal above.
end_task $? 60 "$(logs_of_one)"
