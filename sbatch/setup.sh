#!/bin/bash
# Makes the training environment (6 GB, 46,000 files) on a compute node, once; a login node has too little memory for it:
#   IMAGE=/path/image.sif OVERLAY=/scratch/place/overlay.ext3 sbatch --account=ME sbatch/setup.sh    # into an overlay, one file
#   VENV=/scratch/place/venv sbatch --account=ME sbatch/setup.sh                                     # or into a folder; default .venv
# The same without sbatch makes it here. PYTHON=python3.12 names another interpreter (with IMAGE, one of the image's). A second run goes
# on where one stopped. At the end of setup.log stands what belongs into ~/.config/hpc/site.yaml. Nothing is written below HOME.
#SBATCH --job-name=setup
#SBATCH --output=setup.log
#SBATCH --cpus-per-task=2
#SBATCH --mem=6G
#SBATCH --time=60
set -euo pipefail
die() { echo "setup: $*" >&2; exit 1; }
[ -f tools/setup.sh ] || die "$PWD holds no tools/setup.sh. Say it in the checkout, the folder that holds sbatch/ and tools/."
for name in VENV IMAGE OVERLAY; do
    case ${!name:-/} in /*) ;; *) declare "$name=$PWD/${!name}" ;; esac
done
# What the login node has activated is for the login node.
[ -z "${VIRTUAL_ENV:-}" ] || PATH=${PATH/"$VIRTUAL_ENV/bin:"/}

venv=${VENV:-$PWD/.venv} inside=(env) site='python:' by_hand=''
if [ -n "${IMAGE:-}${OVERLAY:-}" ]; then
    [ -z "${VENV:-}" ] || die "VENV and an overlay are two places. Leave VENV out: in the overlay it is /ext3/env."
    [ -e "${IMAGE:-}" ] || die "IMAGE=${IMAGE:-} is not there. Name the image (.sif) that jobs will run in."
    [ -n "${OVERLAY:-}" ] || die "OVERLAY is not set. Name the file to install into, on scratch; it is made if it is not there."
    runtime=$(command -v apptainer || command -v singularity) || die "no apptainer or singularity on PATH. Load its module, or use VENV=."
    mkdir -p "${OVERLAY%/*}"
    # Sparse: 16 GB hold the packages and, until they are installed, their archives.
    [ -e "$OVERLAY" ] || "$runtime" overlay create --sparse --size "${OVERLAY_MB:-16384}" --create-dir /ext3 "$OVERLAY" ||
        die "$OVERLAY could not be made. Choose another place, or make it yourself with a folder /ext3 that is yours."
    venv=/ext3/env site=$(printf '%s\n' "container: ${runtime##*/}" "image: $IMAGE" "overlay: $OVERLAY" "python:")
    inside=("$runtime" exec --overlay "$OVERLAY" --bind "$PWD" --pwd "$PWD" "$IMAGE")
    by_hand="${runtime##*/} exec --overlay $OVERLAY:ro --bind $PWD --bind ${SCRATCH:-${OVERLAY%/*}} $IMAGE "
fi
"${inside[@]}" env PYTHON="${PYTHON:-python3}" VENV="$venv" bash tools/setup.sh full ||
    die "not finished, the reason stands above. Correct it and say the same again. An overlay that a job uses cannot be written."
"${inside[@]}" "$venv/bin/python" -c 'import submitit, torch, yaml; print("setup: torch", torch.__version__)' ||
    die "$venv is made, but does not load here. Delete it and say the same again on a node like those that train."
printf '%s\n' "# for ~/.config/hpc/site.yaml" "$site $venv/bin/python" "# by hand: $by_hand$venv/bin/python"
