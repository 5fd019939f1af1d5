"""Kills whole runs by SIGKILL at random moments until they end, and compares what they end with.

    python -m tests.slow.kills --kills 100
    python -m tests.slow.kills --kills 10 --run smallest

Every run goes through all stages of `configs/digits.py`, or of a search by `configs/smallest.py`. Each time it is
started it lives for a random while; when one gets through, its parameters and results are compared, bit for bit, with
those of a run that nothing disturbed, and the next work directory begins. Ends with a line of JSON; exit code 1 where
anything differs.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import re
import sys
import tempfile
import threading
import time
from typing import Any

import numpy as np

from tests.integration import command, test_smallest
from tests.integration.test_resume import parameters, without

RUNS = {
    "digits": ("--config=configs/digits.py", *command.FAST, "--config.checkpoint_every=1"),
    "smallest": ("--config=configs/smallest.py", *test_smallest.DIGITS, *test_smallest.GOAL),
}


def stage_of(out: str) -> str:
    """The stage that a run was in when it ended; "evaluate" where it was counting answers behind another."""
    lines = re.findall(r"^-- (\w+)(:?)", out, re.MULTILINE)
    if not lines:
        return "start"
    name, done = lines[-1]
    return "evaluate" if done else name


def saving(workdir: pathlib.Path) -> bool:
    """Whether a checkpoint was being written: orbax renames it when it is whole."""
    return any(workdir.rglob("*.orbax-checkpoint-tmp"))


def outcome(workdir: pathlib.Path) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    return parameters(workdir), [without(row, "seconds", "checksum") for row in rows]


def differences(got: Any, want: Any) -> list[str]:
    """Names of the arrays and rows that are not those of the undisturbed run."""
    arrays = [
        name
        for name in sorted({*got[0], *want[0]})
        if name not in got[0] or name not in want[0] or not np.array_equal(got[0][name], want[0][name])
    ]
    return arrays + ([] if got[1] == want[1] else ["results.json"])


def live(run: str, workdir: pathlib.Path, seconds: float) -> tuple[int, str, str]:
    """Starts a run of RUNS and kills it after so long; exit code and what it said."""
    process = command.start(f"--workdir={workdir}", *RUNS[run])
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    out, err = process.communicate()
    timer.cancel()
    return process.returncode, out, err


def drive(
    kills: int, seed: int, shortest: float, longest: float, folder: pathlib.Path, run: str = "digits"
) -> dict[str, Any]:
    """Kills so often; see the module."""
    draw, started = random.Random(seed), time.perf_counter()
    code, _, err = live(run, folder / "undisturbed", 1e6)
    assert code == 0, err[-3000:]
    want = outcome(folder / "undisturbed")
    stages: collections.Counter[str] = collections.Counter()
    found: dict[str, Any] = {"kills": 0, "while_saving": 0, "runs_ended": 0, "failed": [], "different": []}
    while found["kills"] < kills or (folder / f"run{found['runs_ended']}").exists():
        workdir = folder / f"run{found['runs_ended']}"
        seconds = draw.uniform(shortest, longest) if found["kills"] < kills else 1e6
        code, out, err = live(run, workdir, seconds)
        if code == -9:
            found["kills"] += 1
            stages[stage_of(out)] += 1
            found["while_saving"] += saving(workdir)
        elif code == 0:
            if names := differences(outcome(workdir), want):
                found["different"].append({"workdir": str(workdir), "names": names[:5]})
            found["runs_ended"] += 1
        else:
            found["failed"].append({"workdir": str(workdir), "code": code, "error": err[-500:]})
            found["runs_ended"] += 1  # That directory is spoilt: the next one.
        print(f"{found['kills']} kills, {found['runs_ended']} runs ended, {dict(stages)}", file=sys.stderr, flush=True)
    return found | {"stages": dict(stages), "minutes": round((time.perf_counter() - started) / 60, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shortest", type=float, default=3.0, help="seconds that a run lives at least")
    parser.add_argument("--longest", type=float, default=20.0, help="and at most")
    parser.add_argument("--run", choices=RUNS, default="digits", help="which stages")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as compiled:
        os.environ.setdefault("TESTS_COMPILED", compiled)
        found = drive(given.kills, given.seed, given.shortest, given.longest, pathlib.Path(folder), given.run)
    print(json.dumps(found))
    sys.exit(1 if found["failed"] or found["different"] else 0)


if __name__ == "__main__":
    main()
