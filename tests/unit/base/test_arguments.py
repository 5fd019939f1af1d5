"""How small commands end."""

import subprocess
import sys

ENDLESS = "from lraqvit_jax.base import arguments; arguments.run(lambda _: [print('x' * 99) for _ in range(10**5)])"


def test_who_reads_no_further_ends_a_command_without_a_word():
    with subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"x" * 99 + b"\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
