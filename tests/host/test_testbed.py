# SPDX-License-Identifier: GPL-2.0-or-later
"""The test hosts themselves, with raw QEMU: what they are meant to show must show without vmferry too."""

import os
import pathlib
import signal
import socket

import pytest
from rawqemu import RawQemu, migrate
from testbed import LIMIT, Guest, Testbed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
STREAMS = ["bulk,10.0.0.5,pace=20000000", "ping,10.0.0.5", "ping,fd00::5", "udp,10.0.0.5", "udp,fd00::5", "hold,10.0.0.5,count=50"]


@pytest.fixture
def guest(bed):
    raw = RawQemu(bed.a, Guest()).wait_ready()
    yield raw
    if raw.process.poll() is None:
        raw.close()


def test_connections_pass_the_firewall(bed, guest):
    with bed.probe(*STREAMS) as probe:
        probe.assert_alive()
        assert len(bed.a.conntrack("-d", "10.0.0.5", "-p", "tcp")) >= 52
        assert bed.b.conntrack("-d", "10.0.0.5", "-p", "tcp", "--state", "ESTABLISHED") == []


def test_firewall_drops_what_it_has_not_seen_begin(bed, guest):
    with bed.probe("ping,10.0.0.5", "ping,fd00::5") as probe:
        bed.a.run("conntrack", "-F")
        assert [s["alive"] for s in probe.check(1)] == [False, False]


def test_late_answer_is_one(bed, guest):
    """What comes too late for one check is not the end of the connection."""
    with bed.probe("ping,10.0.0.5", "hold,10.0.0.5,count=5") as probe:
        os.kill(guest.process.pid, signal.SIGSTOP)
        probe.check(0.1)  # an answer may have been on its way
        assert not any(s["alive"] for s in probe.check(0.1))
        os.kill(guest.process.pid, signal.SIGCONT)
        probe.assert_alive(LIMIT)


def test_migration_without_connection_table_kills_tcp(bed, guest):
    """The contrast to all that test_move.py shows."""
    with bed.probe(*STREAMS) as probe:
        boot = bed.ask(guest.guest, "bootid")
        target, _ = migrate(guest, bed.b)
        tcp = [s for s in probe.check(2) if s["stream"] != "udp"]
        assert [s["alive"] for s in tcp] == [False] * len(tcp), tcp
    assert bed.ask(target.guest, "bootid") == boot
    target.close()


def test_migration_copies_memory_that_is_being_written(bed, guest):
    bed.ask(guest.guest, "fill 32")
    bed.ask(guest.guest, "dirty 20")
    target, _ = migrate(guest, bed.b)
    bed.ask(target.guest, "stop")
    assert not bed.ask(target.guest, "check").endswith(" 0 rewritten")
    target.close()


def test_power_button(bed, guest):
    guest.qmp("system_powerdown")
    guest.qmp.wait("SHUTDOWN", guest=True)


@pytest.mark.parametrize("command, event", [("poweroff", "SHUTDOWN"), ("reset", "RESET")])
def test_guest_ends_by_itself(bed, guest, command, event):
    bed.ask(guest.guest, command)
    guest.qmp.wait(event)


def test_guest_panics(make_bed):
    bed = make_bed(hosts=("a",), sshd=False)
    raw = RawQemu(bed.a, Guest(), options=["-device", "pvpanic"]).wait_ready()
    bed.ask(raw.guest, "panic")
    raw.qmp.wait("GUEST_PANICKED")


def test_ssh_between_hosts(bed):
    for here, there in ((bed.a, bed.b), (bed.b, bed.a), (bed.operator, bed.b)):
        ssh = here.env["VMFERRY_SSH"].split()
        found = here.run(*ssh, there.name, 'echo "$VMFERRY_RUNTIME_DIR"; command -v vmferry || true').stdout.split()
        assert found[0] == str(there.runtime)
    ssh = bed.a.env["VMFERRY_SSH"].split()
    bed.b.cut()
    assert bed.a.run(*ssh, "-o", "ConnectTimeout=1", "b", "true", check=False).returncode == 255
    bed.b.heal()
    bed.a.run(*ssh, "b", "true")


def test_leftovers_are_seen(bed):
    assert bed.a.leftovers() == []
    bed.a.run("sh", "-c", "sleep 1000 >/dev/null 2>&1 &")
    bed.a.netns.ip("tuntap add dev tap0 mode tap")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(bed.a.runtime / "left"))
    found = bed.a.leftovers()
    assert [line.split(":")[0].split()[0] for line in found] == ["process", "file", "link"], found
    assert "sleep 1000" in found[0] and found[1:] == ["file run/left", "link tap0"]


def test_two_beds_at_once_and_nothing_left(bed):
    with Testbed() as other:
        names = [n.name for b in (bed, other) for n in b.namespaces]
        assert len(set(names)) == len(names)
        stray = other.a.popen("sleep", "1000", start_new_session=True)
        directory = other.dir
    assert stray.returncode == -9 and not directory.exists()
    assert not any(pathlib.Path(n.path).exists() for n in other.namespaces)
    assert all(pathlib.Path(n.path).exists() for n in bed.namespaces)
