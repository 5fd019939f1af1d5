"""Makes a vision transformer small: low-rank layers, distilled from the model itself, in integers of 8 bits.

What it will cost, then everything (the same command again goes on where it stopped), then the result at work:

    python -m lraqvit_jax.main --config=configs/mnist5k.py --workdir=DIR --dry_run
    python -m lraqvit_jax.main --config=configs/mnist5k.py --workdir=DIR
    python -m lraqvit_jax.predict PHOTO --workdir=DIR

A model and images of your own; labels are needed for the evaluation alone:

    python -m lraqvit_jax.main --config=configs/vit_tiny_small_data.py --workdir=DIR \\
        --config.weights=timm:FILE.safetensors --config.data.train="folder:PHOTOS?labels=none" \\
        --config.data.eval=folder:LABELLED

A config is a Python file; any field of it is a flag, such as --config.plan.budget=0.7 --config.runs.rb_lra_kd.steps=99;
lraqvit_jax/config.py says what each is. `python -m lraqvit_jax.weights timm:FILE` says what a checkpoint holds.

DIR gets plan.json, which you may edit before factorize uses it, checkpoints/, results.json, export/ and report.html;
with --config.hub.push=USER/NAME also hub/, a repository of the Hugging Face Hub, which it pushes.
Exit codes: 0 done, 2 a mistake in the input, 75 stopped by SIGTERM after saving, 1 a defect here.
"""

import contextlib
import functools
import itertools
import os
import pathlib
import re
import runpy
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from lraqvit_jax import config as config_lib
from lraqvit_jax.base import console, files, startup
from lraqvit_jax.base.errors import Preempted, UserError, nearest, storage
from lraqvit_jax.config import Config, FunctionOptions

CONFIG = config_flags.DEFINE_config_file("config", None, "Path of the config file, such as configs/mnist5k.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory for everything the run writes. The same one resumes.")
_STAGES = flags.DEFINE_list("stages", None, f"Only these stages, of {', '.join(config_lib.STAGES)}.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan with its costs and stop; nothing is written.")
_ESTIMATE = flags.DEFINE_bool("estimate", False, "Print memory and FLOPs of each training and stop.")
_QUIET = flags.DEFINE_bool("quiet", False, "Print only warnings, errors and the final table.")
_VERBOSE = flags.DEFINE_bool("verbose", False, "Print also devices, versions, the plan and metrics.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the processes of a TPU pod, SLURM or Kubernetes job.")
_COORDINATOR = flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, to join processes anywhere else.")
_COUNT = flags.DEFINE_integer("num_processes", 0, "How many processes there are, with --coordinator.")
_INDEX = flags.DEFINE_integer("process_id", -1, "Which of them this is, from 0, with --coordinator.")
_FLAGS = (
    *(CONFIG, WORKDIR, _STAGES, _DRY_RUN, _ESTIMATE, _QUIET, _VERBOSE),
    *(_DISTRIBUTED, _COORDINATOR, _COUNT, _INDEX),
)
"""As --help lists them."""


def run(config: Config | Mapping[str, Any], workdir: str, stages: Sequence[str] | None = None) -> None:
    """Runs stages in a work directory.

    Args:
        config: what to do; or its fields, as `lraqvit_jax.config.parse` reads them.
        workdir: for everything that is written.
        stages: which; None is all.

    Raises:
        UserError: bad input.
    """
    from lraqvit_jax import stages as stages_lib
    from lraqvit_jax.run import checks, lock, opening, preemption, results
    from lraqvit_jax.stages import evaluate, outlook

    config = config if isinstance(config, Config) else config_lib.parse(config)
    chosen = _chosen(config, stages)
    with lock.alone(workdir):
        ws = opening.open_workspace(config, workdir)
        checks.counts(config, len(ws.source("calibration")), chosen)
        for line in outlook.surroundings(ws) if console.level() == console.VERBOSE else ():
            console.detail(line)
        for name in config_lib.STAGES:
            if name in chosen:
                console.heading(f"-- {name}")
                started = time.perf_counter()
                ws = stages_lib.run(ws, name)
                console.say(f"-- {name}: {time.perf_counter() - started:.1f} s")
                if name not in ("export", "report", "share"):
                    evaluate.add_rows(ws)
                preemption.stop_if_reached()
        if (ws.directory / "results.json").exists():
            end = "\n".join(filter(None, (results.taken(ws.directory), str(ws.directory / "results.json"))))
            console.result(f"\n{results.table(results.read(ws.directory))}\n\n{end}")


def _chosen(config: Config, stages: Sequence[str] | None) -> list[str]:
    """The stages to run, the last one where a repository is named for it; UserError where one is none."""
    usual = [name for name in config_lib.STAGES if name != "share" or config.hub.push]
    chosen = usual if stages is None else list(stages)
    for name in chosen:
        if name not in config_lib.STAGES:
            raise UserError(f"There is no stage {name!r}; {nearest(name, config_lib.STAGES)}")
    return chosen


def dry_run(config: Config, workdir: str, stages: Sequence[str] | None = None) -> None:
    """Checks all that a run would, as far as nothing has to be fetched, and prints the plan, its costs, time and files;
    writes nothing."""
    from lraqvit_jax.stages import outlook

    outlook.dry_run(config, workdir, _chosen(config, stages))


def estimate(config: Config, workdir: str) -> None:
    """Prints what each training takes of a device, of this machine or of a mesh that is elsewhere; writes nothing."""
    from lraqvit_jax.run import opening
    from lraqvit_jax.stages import estimate

    print(estimate.table(opening.open_workspace(config, workdir, write=False, make_mesh=estimate.mesh_of)))


def _main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"{argv[1]!r} is not a flag; write --config=FILE --workdir=DIR.")
    config, workdir = command_line()
    join()
    if isinstance(config, FunctionOptions):
        run_function(config, workdir)
    elif _ESTIMATE.value:
        estimate(config, workdir)
    elif _DRY_RUN.value:
        dry_run(config, workdir, _STAGES.value)
    else:
        run(config, workdir, _STAGES.value)


def run_function(options: FunctionOptions, workdir: str) -> None:
    """A run of a function that is not one of our models; see `stages.function`."""
    from lraqvit_jax.stages import function

    for name, given in (("stages", _STAGES.value), ("estimate", _ESTIMATE.value)):
        if given:
            raise UserError(f"--{name} is for our own models; leave it out with model={options.model}.")
    if _DRY_RUN.value:
        function.dry_run(options)
    else:
        function.run(options, workdir)


def join() -> None:
    """Joins the other processes where the command line says that there are some, and watches for SIGTERM."""
    from lraqvit_jax.devices import precision, processes
    from lraqvit_jax.run import preemption

    if not _COORDINATOR.value and (_COUNT.value or _INDEX.value != -1):
        raise UserError(
            "--num_processes and --process_id go with --coordinator=HOST:PORT; give that, or --distributed."
        )
    if _DISTRIBUTED.value or _COORDINATOR.value:
        processes.join(_COORDINATOR.value, _COUNT.value, _INDEX.value)
    precision.settle()
    preemption.watch()


def command_line() -> tuple[Config | FunctionOptions, str]:
    """The configuration and the work directory of the command line."""
    if CONFIG.value is None or WORKDIR.value is None:
        raise UserError("Give both --config=FILE and --workdir=DIR; --help shows examples.")
    if _QUIET.value and _VERBOSE.value:
        raise UserError("--quiet and --verbose say the opposite; give one of them.")
    console.set_level(console.QUIET if _QUIET.value else console.VERBOSE if _VERBOSE.value else console.NORMAL)
    logging.set_verbosity(logging.INFO if _VERBOSE.value else logging.WARNING)
    fields = CONFIG.value.to_dict()
    config = config_lib.parse_function(fields) or config_lib.parse(fields)
    return config, str(files.locate_new(WORKDIR.value))


def help_text(teaches: str | None) -> str:
    """What --help prints; python -OO leaves no docstring to teach with."""
    definitions = [flags.FLAGS[holder.name] for holder in _FLAGS]
    lines = [f"  --{flag.name:<14} {flag.help}" for flag in definitions]
    return "\n".join(
        [(teaches or "").strip(), "", "Flags:", *lines, "  --helpfull       All flags, those of the libraries too."]
    )


def parse(argv: Sequence[str], teaches: str | None = "") -> list[str]:
    """Parses the flags and loads the config file; whatever does not fit is the user's mistake.

    `teaches` is what --help prints before the flags.
    """
    if {"-h", "-help", "--help", "--helpshort"} & set(argv[1:]):
        print(help_text(teaches))
        sys.exit(0)
    argv = [_installed(word) for word in argv]
    try:
        positional = flags.FLAGS(argv)
        if CONFIG.value is not None:
            CONFIG.value.to_dict()  # A file that failed to load says so only now.
        return positional
    except flags.UnrecognizedFlagError as error:
        names = [holder.name for holder in _FLAGS]
        raise UserError(f"There is no flag {error.flagname!r}; {nearest(error.flagname, names)}") from error
    except (AttributeError, KeyError) as error:
        fields = _fields(argv)
        names = [word.lstrip("-").partition("=")[0] for word in argv if re.match("--?config[.]", word)]
        wrong = next((name for name in names if name not in fields), "")
        raise UserError(
            f"The config has no field {wrong!r}; {nearest(wrong, fields)}" if wrong else str(error)
        ) from error
    except Exception as error:
        # A config file is the user's program: anything may come out of it. The last line says what.
        last = str(error).strip().splitlines()[-1].strip() if str(error).strip() else repr(error)
        raise UserError(f"The command line or its config file does not fit: {last}") from error


def _installed(word: str) -> str:
    """A word of the command line; configs/NAME.py, where there is no such file here, as the one that pip installed."""
    flag, file = re.fullmatch("(--?config=)?(.*)", word, re.DOTALL).groups("")  # type: ignore[union-attr]
    place = pathlib.Path(sysconfig.get_path("data"), "share", "lraqvit_jax", file.partition(":")[0])
    there = re.fullmatch(r"configs/\w+\.py(:.*)?", file) and not pathlib.Path(file.partition(":")[0]).exists()
    return f"{flag}{place}{file[len(file.partition(':')[0]) :]}" if there and place.is_file() else word


def _fields(argv: Sequence[str]) -> set[str]:
    """Names of all fields of the config file that the command line names, as flags; of the default, if it has none."""
    config = config_lib.default()
    files = [after for word, after in itertools.pairwise(argv) if word in ("-config", "--config")]
    files += [match[1] for word in argv if (match := re.fullmatch("--?config=(.*)", word))]
    for path, colon, argument in (file.partition(":") for file in files):
        with contextlib.suppress(Exception):  # of a file that is any program
            config = runpy.run_path(path)["get_config"](*[argument] if colon else [])
    return {f"config.{name}" for name in config_lib.leaves(config.to_dict())}


def cli(command: Callable[[Sequence[str]], None] = _main, teaches: str | None = __doc__) -> None:
    """Entry point: turns a user's mistake into one sentence and exit code 2.

    Args:
        command: what to run once the flags are parsed.
        teaches: what --help prints before the flags.
    """
    startup.use_huge_pages()
    startup.quiet_threads()
    try:
        app.run(command, flags_parser=functools.partial(parse, teaches=teaches))
    except UserError as error:
        _stop(str(error), 2)
    except KeyboardInterrupt:
        # At once: where Python was in code of a library, it would end with another exit code than this.
        _stop("Interrupted; the same command goes on from the last checkpoint.", 130, at_once=True)
    except Preempted as stopped:
        _stop(str(stopped), stopped.exit_code)
    except Exception as error:
        if sentence := storage(error):
            _stop(sentence, 2, at_once=True)
        if not _joined():
            raise
        traceback.print_exc()
        _stop("This is a defect of ours; please report it.", 1)


def _joined() -> bool:
    """Whether this is one of several processes."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _stop(sentence: str, code: int, at_once: bool = False) -> NoReturn:
    """Says why on stderr, and exits; `at_once` where threads may wait for what cannot be written.

    One of several processes does not wait for the others, who may wait for it.
    """
    console.error(sentence)
    if at_once or _joined():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    cli()
