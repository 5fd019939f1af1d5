#!/usr/bin/env bash
# Starts lraqvit_jax on Kubernetes: fills in launch/k8s.yaml and applies it.
#
#   bash launch/k8s.sh --name=NAME --image=IMAGE --claim=CLAIM [OPTIONS] -- FLAGS OF lraqvit_jax.main
#
#   --image=IMAGE       container image with this package and jax[tpu] (docs/clusters.md)
#   --claim=CLAIM       PersistentVolumeClaim, ReadWriteMany; --workdir lies on it
#   --mount=/mnt/runs   where it is mounted
#   --accelerator=tpu-v5-lite-podslice   label of the TPU nodes
#   --topology=4x4      of the slice; 4 chips a host
#   --dry_run           print the command as a comment and the filled-in YAML, and apply nothing
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/_cluster.sh

name='' image='' claim='' mount=/mnt/runs accelerator=tpu-v5-lite-podslice topology=4x4
while [ $# -gt 0 ]; do
    case $1 in
        --help) usage ;;
        --name=*) name=${1#*=} ;;
        --image=*) image=${1#*=} ;;
        --claim=*) claim=${1#*=} ;;
        --mount=*) mount=${1#*=} ;;
        --accelerator=*) accelerator=${1#*=} ;;
        --topology=*) topology=${1#*=} ;;
        --dry_run) DRY_RUN=1 ;;
        --) shift; break ;;
        *) fail "$1 is no option of k8s.sh; --help lists them, flags of lraqvit_jax.main come after --." ;;
    esac
    shift
done
workdir=$(workdir_of "$@")
[[ $name =~ ^[a-z][-a-z0-9]*$ ]] || fail "Give --name=NAME, in small letters, digits and dashes."
[[ $image =~ ^[a-zA-Z0-9._/:@-]+$ ]] || fail "Give --image=IMAGE, a container image."
[[ $claim =~ ^[a-z0-9][-.a-z0-9]*$ ]] || fail "Give --claim=CLAIM, the name of a PersistentVolumeClaim."
[[ $mount =~ ^/[a-zA-Z0-9._/-]+$ ]] || fail "--mount=$mount must be an absolute path without spaces."
[[ $accelerator =~ ^[a-z0-9-]+$ ]] || fail "--accelerator=$accelerator is no label of TPU nodes."
[[ $topology =~ ^[0-9]+(x[0-9]+)+$ ]] || fail "--topology=$topology must read like 4x4."
hosts=$((${topology//x/*} / 4))
[ "$hosts" -gt 0 ] || fail "--topology=$topology has fewer than the 4 chips of a host."
[[ $workdir/ == "${mount%/}"/* ]] || fail "--workdir=$workdir must lie below --mount=$mount: nothing else outlives a pod."
[ -n "$DRY_RUN" ] || command -v kubectl > /dev/null || fail "kubectl is missing; install it."

filled() {  # JSON is YAML; Kubernetes replaces $(NAME) in args, and writes $$( for $(
    # shellcheck disable=SC2016  # the script is Python
    NAME=$name IMAGE=$image CLAIM=$claim MOUNT=${mount%/} ACCELERATOR=$accelerator TOPOLOGY=$topology HOSTS=$hosts \
        python3 -c '
import json, os, pathlib, string, sys
flags = json.dumps([flag.replace("$(", "$$(") for flag in sys.argv[1:]])
print(string.Template(pathlib.Path("launch/k8s.yaml").read_text()).safe_substitute(os.environ, FLAGS=flags), end="")
' "$@"
}

if [ -n "$DRY_RUN" ]; then
    echo "# kubectl apply --filename=-"
    filled "$@"
else
    filled "$@" | kubectl apply --filename=-
fi
