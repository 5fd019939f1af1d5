"""A command on a lesser processor than this one: an x86-64 core whose AVX-512, VNNI and AMX no library sees.

    python -m tests.slow.processor avx2 python -m lraqvit_jax.bench latency ...

`avx2` hides AVX-512, all of VNNI and AMX; `vnni` AMX and floats of 16 bits alone, which leaves what an Ice Lake has.
Libraries choose their kernels by what `cpuid` says, and it says less (processor.c; Linux on x86-64 with CPUID faulting,
a C compiler). So sums are those of the lesser processor's instructions, and times are what this core does with them,
not another core's. /proc/cpuinfo still says all, so name an ONNX target.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

KINDS = ("avx2", "vnni")
SOURCE = pathlib.Path(__file__).with_suffix(".c")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.slow.processor", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        library = pathlib.Path(folder) / "processor.so"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
        seen = {**os.environ, "PROCESSOR": given.kind, "LD_PRELOAD": str(library)}
        return subprocess.run(given.command, env=seen, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
