"""Compresses a vision transformer: trains or loads a teacher, plans ranks, factorizes, distills, merges, quantizes,
evaluates, exports and reports.

    python -m lraqvit_jax.main --config configs/mnist5k.py --workdir /tmp/mnist5k
    python -m lraqvit_jax.main --config configs/mnist5k.py --workdir /tmp/mnist5k --dry_run
    python -m lraqvit_jax.main --config configs/mnist5k.py --workdir /tmp/mnist5k --stages=quantize,evaluate

The same command again goes on where the last one stopped. Exit codes: 0 done, 2 a mistake in the input,
1 a defect here.
"""

import importlib
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from lraqvit_jax import config as config_lib
from lraqvit_jax.errors import UserError, nearest

CONFIG = config_flags.DEFINE_config_file("config", None, "Path of the config file, such as configs/mnist5k.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory for everything the run writes. The same one resumes.")
_STAGES = flags.DEFINE_list("stages", None, "Stages to run, in their usual order; default all.")
_ESTIMATE = flags.DEFINE_bool("estimate", False, "Print memory and FLOPs of each training and stop; see estimate.py.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan with its costs and stop; nothing is written.")


def run(config: dict, workdir: str, stages: Sequence[str] | None = None) -> None:
    """Runs stages in a work directory.

    Args:
        config: all fields; see `lraqvit_jax.config`.
        workdir: for everything that is written.
        stages: which; None is all.

    Raises:
        UserError: bad input.
    """
    from lraqvit_jax import results, workspace
    from lraqvit_jax.stages import evaluate

    wanted = list(config_lib.STAGES) if stages is None else list(stages)
    for name in wanted:
        if name not in config_lib.STAGES:
            raise UserError(f"There is no stage {name!r}; {nearest(name, config_lib.STAGES)}")
    ws = workspace.open_workspace(config, workdir)
    for name in config_lib.STAGES:
        if name in wanted:
            print(f"-- {name}", flush=True)
            started = time.perf_counter()
            ws = importlib.import_module(f"lraqvit_jax.stages.{name}").run(ws) or ws
            print(f"-- {name}: {time.perf_counter() - started:.1f} s", flush=True)
            if name not in ("export", "report"):
                evaluate.add_rows(ws)
    if (ws.directory / "results.json").exists():
        print(f"\n{results.table(results.read(ws.directory))}\n\n{ws.directory / 'results.json'}", flush=True)


def dry_run(config: dict, workdir: str) -> None:
    """Prints the plan and its costs; writes nothing."""
    from lraqvit_jax import plan, sharding, workspace
    from lraqvit_jax.stages.evaluate import other_params

    ws = workspace.open_workspace(config, workdir, write=False)
    dense = plan.dense(ws.spec.layers)
    abstract = sharding.abstract_params(ws.create(dense), ws.preprocess.size, ws.mesh)
    print(plan.table(ws.plan, ws.spec.layers, other_params(abstract, dense)))
    if ws.provisional:
        print(f"Ranks of the uniform ratio; the stage plan chooses by {ws.config['plan']['method']!r} for this budget.")
    print("mesh: " + ", ".join(f"{axis} {size}" for axis, size in ws.mesh.shape.items()))


def estimate(config: dict, workdir: str) -> None:
    """Prints what each training takes of a device, of this machine or of a mesh that is elsewhere; writes nothing."""
    from lraqvit_jax import estimate, workspace

    config_lib.check(config)
    print(estimate.table(workspace.open_workspace(config, workdir, write=False, mesh=estimate.mesh_of(config))))


def _main(argv: Sequence[str]) -> None:
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
        raise UserError(f"{argv[1]!r} is no flag; write --config=FILE --workdir=DIR.")
    config, workdir = given()
    if _ESTIMATE.value:
        estimate(config, workdir)
    elif _DRY_RUN.value:
        dry_run(config, workdir)
    else:
        run(config, workdir, _STAGES.value)


def given() -> tuple[dict, str]:
    """The config and the work directory of the command line."""
    if CONFIG.value is None or WORKDIR.value is None:
        raise UserError("Give both --config=FILE and --workdir=DIR; --help lists every flag.")
    return CONFIG.value.to_dict(), WORKDIR.value


def parse(argv: Sequence[str]) -> list[str]:
    """Parses the flags and loads the config file; whatever does not fit is the user's mistake."""
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is not None:
            CONFIG.value.to_dict()  # A file that failed to load says so only now.
        return rest
    except (AttributeError, KeyError) as error:
        fields = {f"config.{name}" for name in config_lib.leaves(config_lib.default().to_dict())}
        given = [word.removeprefix("--").partition("=")[0] for word in argv if word.startswith("--config.")]
        wrong = next((name for name in given if name not in fields), "")
        raise UserError(
            f"The config has no field {wrong!r}; {nearest(wrong, fields)}" if wrong else str(error)
        ) from error
    except Exception as error:
        # A config file is the user's program: anything may come out of it. The last line says what.
        last = str(error).strip().splitlines()[-1].strip() if str(error).strip() else repr(error)
        raise UserError(f"The command line or its config file does not fit: {last}") from error


HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Of glibc's malloc, as GLIBC_TUNABLES asks for them."""


def _use_huge_pages() -> None:
    """Starts this process over with huge pages for malloc, where Linux gives them only on request.

    XLA's CPU backend maps its buffers anew at every step; page faults are a third of the time of a step on 2 cores.
    glibc reads the setting when a process starts. A GLIBC_TUNABLES of the user's stands.
    """
    setting = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if "GLIBC_TUNABLES" not in os.environ and setting.is_file() and "[madvise]" in setting.read_text():
        environment = os.environ | {"GLIBC_TUNABLES": HUGE_PAGES}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def cli(command: Callable[[Sequence[str]], None] = _main) -> None:
    """Entry point: turns a user's mistake into one sentence and exit code 2."""
    _use_huge_pages()
    try:
        app.run(command, flags_parser=parse)
    except UserError as error:
        sys.exit(_fail(str(error), 2))
    except KeyboardInterrupt:
        sys.exit(_fail("Interrupted; the same command goes on from the last checkpoint.", 130))


def _fail(sentence: str, code: int) -> int:
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    cli()
