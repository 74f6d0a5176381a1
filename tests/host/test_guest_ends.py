# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest shuts down, panics, resets or suspends while it moves: that is the result, on one host, and nothing is left."""

import contextlib
import itertools
import json
import os
import subprocess

import pytest

from faults import shut_down_unheard
from testbed import LIMIT, Guest, Testbed, wait_until


@pytest.fixture(scope="module")
def bed():
    with Testbed() as bed:
        for host in (bed.a, bed.b):
            host.write_conf("receive {\n qemu-args = true\n}\n")
        yield bed


numbers = itertools.count(5)


@pytest.fixture
def vm(bed):
    """A VM on a, with memory that takes a while to move, of a name of its own: (name, guest). Nothing is left of it afterwards."""
    number = next(numbers)
    name, guest = f"web{number}", Guest(number)
    bed.a.start(name, guest, qemu_args=["-device", "pvpanic"])
    bed.ask(guest, "fill 32")
    yield name, guest
    for host in (bed.a, bed.b):
        host.vmferry("kill", name, check=False)
        assert host.wait_clean() == []


def slow(bed, name):
    """A migration that copies memory until it is told to be quick."""
    mover = bed.a.popen("vmferry", "migrate", name, bed.b.exec_destination(), "--transport=tcp", "--bandwidth=1M", "--json",
                        "--progress=none", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: (bed.a.status(name).get("migration") or {}).get("state") == "perform")
    return mover


def ended(mover, status):
    out, err = mover.communicate(timeout=LIMIT)
    assert mover.returncode == status, out + err
    return json.loads(out.strip().split("\n")[-1])


@pytest.mark.parametrize("command, said", [("poweroff", "was shut down"), ("panic", "panicked")])
def test_ends(bed, vm, command, said):
    name, guest = vm
    mover = slow(bed, name)
    bed.ask(guest, command)
    result = ended(mover, 1)
    assert said in result["error"]["message"] and result["guest"] == "shut off"
    assert bed.a.wait_clean() == [] and bed.b.wait_clean() == []
    assert bed.a.status(name)["state"] == "off"
    bed.a.start(name, guest)


def test_ends_unheard(bed, vm):
    """No keeper hears of it: the next one finds a QEMU without a guest."""
    name, guest = vm
    mover = slow(bed, name)
    shut_down_unheard(bed, bed.a, guest, name)
    mover.communicate(timeout=LIMIT)
    assert bed.a.wait_clean() == [] and bed.b.wait_clean() == []
    assert bed.a.status(name)["state"] == "off"


def test_panics_at_home(bed, vm):
    name, guest = vm
    bed.ask(guest, "panic")
    assert bed.a.wait_clean() == []
    events = [json.loads(line).get("event") for line in bed.a.vmferry("log", name, "--json").stdout.splitlines()]
    assert "panicked" in events


def boot_id(bed, guest):
    """None: nobody answers."""
    with contextlib.suppress(OSError, AssertionError):
        return bed.ask(guest, "bootid", timeout=5)


def test_resets(bed, vm):
    """It moves on, and boots wherever it is."""
    name, guest = vm
    boot = bed.ask(guest, "bootid")
    mover = slow(bed, name)
    bed.ask(guest, "reset")
    bed.a.vmferry("set", name, "bandwidth=1G")
    assert ended(mover, 0)["guest"] == "running there"
    wait_until(lambda: boot_id(bed, guest) not in (None, boot))


@pytest.mark.skipif("VMFERRY_TEST_QEMU" in os.environ, reason="QEMU before 9.0 forgets that the guest sleeps")
def test_suspends(bed, vm):
    """A guest that sleeps (ACPI S3) sleeps on over there, and wakes up as it was."""
    name, guest = vm
    boot = bed.ask(guest, "bootid")
    mover = slow(bed, name)
    bed.ask(guest, "suspend")
    wait_until(lambda: bed.a.status(name)["reason"] == "suspended")
    bed.a.vmferry("set", name, "bandwidth=1G")
    assert ended(mover, 0)["guest"] == "running there"
    wait_until(lambda: bed.b.status(name)["reason"] == "suspended")
    bed.b.vmferry("resume", name)
    assert bed.ask(guest, "bootid") == boot
    assert bed.b.status(name)["state"] == "running"
