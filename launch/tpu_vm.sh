#!/usr/bin/env bash
# Runs lraqvit_jax on all workers of a Cloud TPU VM, and goes on after a preemption. docs/clusters.md explains it.
#
#   bash launch/tpu_vm.sh ACTION --name=NAME --zone=ZONE [OPTIONS] [-- FLAGS OF lraqvit_jax.main]
#
# Actions:
#   run      creates the VM where it is missing, copies this checkout, runs, and restarts until the run is done
#   create   creates the VM
#   copy     copies this checkout to every worker and installs what it needs
#   logs     follows the log of worker 0
#   stop     asks every worker to save and stop (exit code 75)
#   delete   deletes the VM
# Options:
#   --type=v5litepod-16         accelerator type
#   --version=v2-alpha-tpuv5-lite   runtime version of that type
#   --project=PROJECT           default: gcloud's
#   --spot                      cheap, and preempted at any time
#   --queued                    ask for the VM as a queued resource of the same name, and wait for it
#   --prepare=COMMAND           run on every worker after copying: mounts what --workdir lies on
#   --retries=3                 restarts after a crash; those after a preemption are not counted
#   --pause=30                  seconds between two attempts
#   --dry_run                   print every command, one a line, and run none
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/_cluster.sh

action=${1:---help}
[[ $action == --* ]] || shift
name='' zone='' project='' spot='' queued='' prepare=true
accelerator=v5litepod-16 version=v2-alpha-tpuv5-lite retries=3 pause=30
while [ $# -gt 0 ]; do
    case $1 in
        --help) usage ;;
        --name=*) name=${1#*=} ;;
        --zone=*) zone=${1#*=} ;;
        --type=*) accelerator=${1#*=} ;;
        --version=*) version=${1#*=} ;;
        --project=*) project=${1#*=} ;;
        --spot) spot=--spot ;;
        --queued) queued=1 ;;
        --prepare=*) prepare=${1#*=} ;;
        --retries=*) retries=${1#*=} ;;
        --pause=*) pause=${1#*=} ;;
        --dry_run) DRY_RUN=1 ;;
        --) shift; break ;;
        *) fail "$1 is no option of tpu_vm.sh; --help lists them, and flags of lraqvit_jax.main come after --." ;;
    esac
    shift
done
case $action in
    run) workdir_of "$@" > /dev/null ;;
    create | copy | logs | stop | delete) [ $# -eq 0 ] || fail "Only run takes flags of lraqvit_jax.main." ;;
    --help) usage ;;
    *) fail "$action is no action; --help lists them." ;;
esac
[[ $name =~ ^[a-z][-a-z0-9]*$ ]] || fail "Give --name=NAME, in small letters, digits and dashes."
[ -n "$zone" ] || fail "Give --zone=ZONE, such as --zone=us-west4-a."
[[ $retries =~ ^[0-9]+$ ]] || fail "--retries=$retries must be a whole number."
[[ $pause =~ ^[0-9]+$ ]] || fail "--pause=$pause must be a whole number of seconds."
[ -n "$DRY_RUN" ] || command -v gcloud > /dev/null || fail "gcloud is missing; install the Google Cloud CLI."

place=("--zone=$zone" ${project:+"--project=$project"})
tpu() { act gcloud compute tpus "$1" "$2" "${@:3}" "${place[@]}"; }
on() { tpu tpu-vm ssh "$name" "--worker=$1" "--command=$2"; }
state() {  # of the VM or its queued resource; nothing where there is none; fails where gcloud says anything but that
    local errors="${TMPDIR:-/tmp}/$name.errors"
    DRY_RUN='' tpu "$1" describe "$name" "--format=value($2)" 2> "$errors" && return
    grep --quiet NOT_FOUND "$errors" || { cat "$errors" >&2; return 1; }
}

create() {
    local what=("--accelerator-type=$accelerator" ${spot:+"$spot"})
    if [ -z "$queued" ]; then
        tpu tpu-vm create "$name" "--version=$version" "${what[@]}"
        return
    fi
    tpu queued-resources create "$name" "--node-id=$name" "--runtime-version=$version" "${what[@]}" || return
    [ -n "$DRY_RUN" ] || while [ "$(state tpu-vm state)" != READY ]; do
        case $(state queued-resources state.state) in
            FAILED | SUSPEND*) echo "The queued resource $name failed." >&2; return 1 ;;
        esac
        sleep "$pause"
    done
}

delete() {
    if [ -n "$queued" ]; then tpu queued-resources delete "$name" --force --quiet
    else tpu tpu-vm delete "$name" --quiet
    fi
}

# On a worker, whoever holds the lock runs. gcloud sends a command again when its connection breaks: the second one waits
# for the first and hands on its exit code. Nothing is copied over code that runs.
copy() {
    local archive="${TMPDIR:-/tmp}/$name.tar.gz" install
    # The images of TPU VMs have Python 3.10; uv brings a newer one.
    install="python3 -m pip install --user --quiet uv"
    install+=" && ~/.local/bin/uv venv --quiet --allow-existing --python=3.12 .venv"
    install+=" && ~/.local/bin/uv pip install --quiet --requirements=requirements.txt 'jax[tpu]'"
    act tar -czf "$archive" --exclude=__pycache__ lraqvit_jax configs requirements.txt &&
        tpu tpu-vm scp "$archive" "$name:lraqvit_jax.tar.gz" --worker=all &&
        on all "mkdir -p lraqvit_jax && cd lraqvit_jax && exec 9> run.lock && if flock --nonblock 9; then \
tar -xzf ../lraqvit_jax.tar.gz && $install && { $prepare; }; else echo 'A run goes on: nothing is copied.'; fi"
}

run_once() {
    local main
    main=$(quoted .venv/bin/python -m lraqvit_jax.main --distributed "$@")
    on all "cd lraqvit_jax && exec 9> run.lock && touch run.log && \
{ tail --lines=0 --follow --pid=\$\$ run.log 9>&- & } && shown=\$! && \
if flock --nonblock 9; then rm -f run.code; $main >> run.log 2>&1; code=\$?; echo \$code > run.code; \
else flock 9; code=\$(cat run.code || echo 1); fi; sleep 1; kill \$shown; exit \$code"
}

new=''  # set while the VM has not got its copy
ready() {  # waits for the VM, or makes a new one where it is gone; fails where that fails
    local now
    while now=$(state tpu-vm state); do
        case $now in
            READY) return ;;
            '' | PREEMPTED | TERMINATED)
                echo "$name is ${now:-not there}: a new one is made." >&2
                delete > /dev/null 2>&1 || true
                create && new=1
                return ;;
            *) echo "$name is $now: waiting." >&2; sleep "$pause" ;;
        esac
    done
    return 1
}

run() {
    local code crashes=0
    ready
    copy
    while true; do
        new='' code=0
        run_once "$@" || code=$?
        case $code in 0 | 2) exit "$code" ;; esac
        if [ "$code" != 75 ] && [ "$(state tpu-vm state || true)" = READY ]; then
            crashes=$((crashes + 1))
            [ "$crashes" -le "$retries" ] || exit "$code"
        fi
        echo "Exit code $code: the same command again in $pause s." >&2
        sleep "$pause"
        until ready && { [ -z "$new" ] || copy; }; do sleep "$pause"; done
    done
}

case $action in
    run) if [ -n "$DRY_RUN" ]; then create && copy && run_once "$@"; else run "$@"; fi ;;
    logs) on 0 "tail --lines=100 --follow=name --retry lraqvit_jax/run.log" ;;
    stop) on all "pkill -TERM -f '^[^ ]*python -m lraqvit_jax[.]main'" ;;
    *) "$action" ;;
esac
