# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration that is held in each of its phases by a target that says no more (rawpeer.py), and cancelled there."""

import json
import pathlib
import subprocess
import sys
import time

from testbed import LIMIT

TOKEN = "0" * 32
TAKES = {"data": TOKEN, "receiving": True}

# The source's state, what the target does not do then, and options that make the phase last.
PHASES = {
    "connect": ({"line": "silence"}, []),
    "hello": ({"hello": "silence"}, []),
    "prove": ({"hello": {"address": "10.99.0.99", "port": 4, "token": TOKEN}}, ["--transport=tcp"]),
    "prepare": ({"prepare": "silence"}, []),
    "open": ({"data": "silence"}, []),
    "perform": (TAKES, ["--transport=tunnel", "--bandwidth=64K"]),
    "hold": ({"data": TOKEN}, []),
    "switchover": (TAKES | {"loads": False}, []),
    "finish": (TAKES | {"finish": "silence"}, []),
    "in-doubt": (TAKES | {"finish": "silence", "outcome": "silence"}, []),
}
COMMITTED = ("finish", "in-doubt")  # too late: that is the answer


def raw_target(host, name, script):
    """A destination that plays this script."""
    path = host.dir / f"{name}.json"
    path.write_text(json.dumps(script))
    return f"exec:{sys.executable} {pathlib.Path(__file__).with_name('rawpeer.py')} {path}"


def migration(host, vm):
    return (host.status(vm) or {}).get("migration") or {}


def reaches(host, vm, phase, mover):
    """Wait until the migration is in this phase; False: it has ended."""
    end = time.monotonic() + LIMIT
    while migration(host, vm).get("state") != phase:
        assert time.monotonic() < end, f"never in {phase}: {host.status(vm)}"
        if mover.poll() is not None and phase != "in-doubt":
            return False
    return True


def try_cancel(host, vm, phase):
    """As cancelled(); None: the phase was over before the cancel came."""
    script, options = PHASES[phase]
    mover = host.popen("vmferry", "migrate", vm, raw_target(host, phase, script), "--json", "--progress=none", *(options or ["--transport=tunnel"]),
                       stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    there = reaches(host, vm, phase, mover)
    begin = time.monotonic()
    answer = host.vmferry("cancel", vm, check=False)
    took = time.monotonic() - begin
    if phase == "in-doubt":
        host.vmferry("recover", vm, "--assume=runs-nowhere", "--yes")
    result = json.loads(mover.communicate(timeout=LIMIT)[0].strip().split("\n")[-1])
    host.children.remove(mover)
    end = time.monotonic() + LIMIT
    while host.status(vm)["state"] != "running" or migration(host, vm):
        assert time.monotonic() < end, host.status(vm)
    if phase in COMMITTED:
        assert "too late" in answer.stderr, answer.stdout + answer.stderr
        return took
    if not there or result["status"] != "cancelled":
        return None
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return took


def cancelled(host, vm, phase):
    """Seconds from the start of `vmferry cancel` to its end; the guest runs here again."""
    for _ in range(20):  # "prove" and "hold" last a second at most
        if (took := try_cancel(host, vm, phase)) is not None:
            return took
    raise AssertionError(f"no cancel came while it was in {phase}")
