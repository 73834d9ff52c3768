"""Two processes, each with its own devices and data, train as one; also after one has died."""

import os
import socket
import subprocess
import sys

import pytest

from tests import two_processes_program

DEVICES = 2  # of each process


def launch(folder, first, dies_at):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    program = [sys.executable, "-m", "tests.two_processes_program"]
    return [
        subprocess.Popen(
            [*program, port, str(number), str(folder), str(first), str(dies_at)],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]


def said(process):
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err[-3000:]
    return out.splitlines()[-1]


@pytest.mark.slow
def test_two_processes_decide_as_one_and_resume_after_a_death(tmp_path):
    carry, telemetry = two_processes_program.whole()
    alone = two_processes_program.summary(telemetry, carry)
    assert "skipped 1 " in alone
    assert {"0", "1", "2"} <= set(alone.split()[1])

    first, second = launch(tmp_path, 0, 60)
    second.communicate(timeout=200)
    assert second.returncode == 7
    first.kill()  # it waits for the other one
    first.communicate()
    assert (tmp_path / "50.pickle").exists()
    again = [said(process) for process in launch(tmp_path, 50, 0)]
    assert again[0] == again[1]
    words, expected = again[0].split(), alone.split()
    assert words[1] == expected[1][50:]
    assert words[3] == expected[3]
    assert float(words[5]) == pytest.approx(float(expected[5]), rel=1e-3)
