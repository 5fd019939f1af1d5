# Sourced by tpu_vm.sh, gpu_slurm.sh and k8s.sh.
# shellcheck shell=bash
DRY_RUN=${DRY_RUN:-}

fail() {  # a mistake of the user: one sentence, exit code 2
    echo "error: $*" >&2
    exit 2
}

usage() {  # the comment at the head of the script
    sed -n '2,/^[^#]/{/^#SBATCH/d;s/^# \{0,1\}//p;}' "launch/${0##*/}"
    exit 0
}

quoted() {  # the words as one line that a shell reads back as the same words
    local word line='' single="'" escaped="'\\''"
    for word; do
        [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word="'${word//$single/$escaped}'"
        line+=" $word"
    done
    echo "${line# }"
}

act() {  # runs a command, or prints it in a dry run
    if [ -n "$DRY_RUN" ]; then quoted "$@"; else "$@"; fi
}

workdir_of() {  # checks the flags of lraqvit_jax.main and prints the work directory
    local flag previous='' config='' workdir=''
    for flag; do
        case $flag in
            --config=?*) config=1 ;;
            --workdir=?*) workdir=${flag#*=} ;;
            --distributed* | --coordinator* | --num_processes* | --process_id*)
                fail "${flag%%=*} is set by ${0##*/}; leave it out." ;;
        esac
        case $previous in
            --config) config=1 ;;
            --workdir) workdir=$flag ;;
        esac
        previous=$flag
    done
    [ -n "$config" ] && [ -n "$workdir" ] || fail "Give --config=FILE and --workdir=DIR of lraqvit_jax.main after --."
    case $workdir in
        *://*) fail "--workdir=$workdir is no path; mount it on every machine and give that path (docs/clusters.md)." ;;
        /*) echo "$workdir" ;;
        *) fail "--workdir=$workdir must be an absolute path that every process sees." ;;
    esac
}
