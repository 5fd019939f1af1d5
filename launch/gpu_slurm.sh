#!/usr/bin/env bash
# Runs lraqvit_jax under SLURM, a process for every GPU, and queues itself again when it is preempted or out of time.
#
#   sbatch [OPTIONS OF sbatch] launch/gpu_slurm.sh [--python=FILE] -- FLAGS OF lraqvit_jax.main
#   bash launch/gpu_slurm.sh --dry_run -- FLAGS OF lraqvit_jax.main
#
# Submit from the root of this checkout, on a file system that every node sees. Options of sbatch go before those below:
#   sbatch --nodes=4 --partition=NAME launch/gpu_slurm.sh -- --config=configs/deit_base.py --workdir=/shared/deit_base
# --python=FILE: interpreter (default .venv/bin/python). --dry_run: print every command, one a line, and run none.
#SBATCH --job-name=lraqvit_jax
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
[ -f launch/_cluster.sh ] || { echo "error: submit from the root of the checkout of lraqvit_jax." >&2; exit 2; }
source launch/_cluster.sh

python=.venv/bin/python
while [ $# -gt 0 ]; do
    case $1 in
        --help) usage ;;
        --python=*) python=${1#*=} ;;
        --dry_run) DRY_RUN=1 ;;
        --) shift; break ;;
        *) fail "$1 is no option of gpu_slurm.sh; those of sbatch come before it, flags of lraqvit_jax.main after --." ;;
    esac
    shift
done
workdir_of "$@" > /dev/null
# A process that has saved and left must not take the others along while they save (--kill-on-bad-exit, --wait).
# srun does not take --cpus-per-task from sbatch. JAX gives a process the GPU of its place on the node, so every process
# must see all GPUs of its node: no --gpus-per-task.
run=(srun --kill-on-bad-exit=0 --wait=0 "--cpus-per-task=${SLURM_CPUS_PER_TASK:-8}")
run+=("$python" -m lraqvit_jax.main --distributed "$@")
if [ -n "$DRY_RUN" ]; then
    quoted "${run[@]}"
    echo "scontrol requeue ${SLURM_JOB_ID:-JOB}  # after exit code 75"
    exit 0
fi
[ -n "${SLURM_JOB_ID:-}" ] || fail "Submit it: sbatch launch/gpu_slurm.sh ...; or look at it first: --dry_run."

# SLURM signals this shell; srun hands the signal on to every process. A signal ends `wait`, not srun: wait again.
srun='' signalled='' code=0
trap 'signalled=1; [ -z "$srun" ] || kill -TERM "$srun" 2> /dev/null || true' TERM
"${run[@]}" &
srun=$!
[ -z "$signalled" ] || kill -TERM "$srun" 2> /dev/null || true  # It came before srun had a number.
wait "$srun" || code=$?
while [ -n "$signalled" ]; do
    signalled='' code=0
    wait "$srun" || code=$?
done
# `scancel JOB` ends the processes with 75 too; that job is COMPLETING and must stay ended.
if [ "$code" = 75 ] && [[ $(squeue --noheader --format=%T "--jobs=$SLURM_JOB_ID") != COMPLETING ]]; then
    echo "Preempted after saving: job $SLURM_JOB_ID is queued again." >&2
    scontrol requeue "$SLURM_JOB_ID" || echo "It could not be queued again; submit the same command." >&2
fi
exit "$code"
