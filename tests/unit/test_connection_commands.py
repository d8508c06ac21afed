# SPDX-License-Identifier: Apache-2.0
"""Commands of ss and tcpdump for a row."""

from __future__ import annotations

import shlex
import subprocess
from typing import Any

import pytest

from nettop.screens.connections.sockets import commands_for

TCP: dict[str, Any] = {
    "protocol": "tcp",
    "local_address": "10.0.3.7",
    "local_port": 443,
    "remote_address": "203.0.113.9",
    "remote_port": 52114,
    "pid": 1812,
    "namespace": "own",
}
V6 = TCP | {"local_address": "2001:db8::7", "remote_address": "2001:db8:1::9"}
LISTENER = TCP | {"local_address": "::", "remote_address": None, "remote_port": None}


@pytest.mark.parametrize(
    ("row", "ss", "tcpdump"),
    [
        (
            TCP,
            "ss -tinpa 'src 10.0.3.7:443 and dst 203.0.113.9:52114'",
            "tcpdump -ni any 'tcp and host 10.0.3.7 and port 443 and host 203.0.113.9 and port 52114'",
        ),
        (
            V6 | {"protocol": "udp"},
            "ss -uinpa 'src [2001:db8::7]:443 and dst [2001:db8:1::9]:52114'",
            "tcpdump -ni any 'udp and host 2001:db8::7 and port 443 and host 2001:db8:1::9 and port 52114'",
        ),
        (LISTENER, "ss -tinpa 'sport = :443'", "tcpdump -ni any 'tcp and port 443'"),
        (TCP | {"pid": None}, "ss -tinpa 'src 10.0.3.7:443 and dst 203.0.113.9:52114'", None),
        (TCP | {"namespace": "web; rm"}, "nsenter -t 1812 -n ss -tinpa 'src 10.0.3.7:443 and dst 203.0.113.9:52114'",
         None),
    ],
    ids=["v4", "v6 udp", "listener", "no process", "another namespace"],
)  # fmt: skip
def test_commands(row: dict[str, Any], ss: str, tcpdump: str | None) -> None:
    """By both ends, or by the port of what waits; where the row is in another namespace, there."""
    made = commands_for(row)
    assert made["ss"] == ss
    assert tcpdump is None or made["tcpdump"] == tcpdump
    if not made["ss"].startswith("nsenter"):
        done = subprocess.run(shlex.split(made["ss"]), capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "row",
    [
        TCP | {"local_port": None, "remote_port": None},
        TCP | {"protocol": None},
        TCP | {"namespace": "web", "pid": None},
    ],
    ids=["not bound", "no protocol", "a namespace without a process"],
)
def test_no_commands(row: dict[str, Any]) -> None:
    """None that would be of something else."""
    assert commands_for(row) == {}


def test_no_command_enters_a_process_of_another_machine() -> None:
    """In a replay, and of other hosts, a PID names nothing here; the own namespace needs none."""
    assert commands_for(TCP | {"namespace": "web"}, are_processes_here=False) == {}
    assert commands_for(TCP, are_processes_here=False) == commands_for(TCP)
