# SPDX-License-Identifier: GPL-2.0-or-later
"""A running guest moves between two hosts with strict firewalls, and its connections stay up."""

import contextlib
import json
import os
import pathlib
import re
import subprocess

import pytest
from faults import qemus
from probe import ECHO
from testbed import BUILD, LIMIT, Guest, wait_file, wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not (BUILD / "src/cli/vmferry").exists(), reason="vmferry is not built"),
]
STREAMS = [
    "bulk,10.0.0.5,pace=20000000", "bulk,fd00::5,pace=5000000", "ping,10.0.0.5", "ping,fd00::5",
    "udp,10.0.0.5", "udp,fd00::5", "hold,10.0.0.5,count=100", "hold,fd00::5,count=100",
]  # fmt: skip
TCP = 204
LIGHT = ["ping,10.0.0.5,interval=50", "ping,fd00::5,interval=50", "hold,10.0.0.5,count=50", "hold,fd00::5,count=50"]


@pytest.fixture
def vm(bed):
    """web1, running on a; what is left of it when the test has ended would be the test's fault."""
    guest = Guest()
    bed.a.start("web1", guest)
    return guest


def longest_gap(result):
    """What a stream may notice, ms: the pause, a TCP that has doubled its retransmission time over it, a machine with other work."""
    return 2 * result["pause_ms"] + 10000


def move(bed, guest, here, there, *options, destination=None):
    """Move web1, check all that must be so after every move, return the result."""
    boot = bed.ask(guest, "bootid")
    result = here.migrate("web1", destination or there, *options)
    assert bed.ask(guest, "bootid") == boot
    assert (result["source"], result["target"]) == (here.name, there.name)
    assert there.status("web1")["state"] == "running"
    assert here.wait_clean() == []
    assert here.status("web1") is None or here.status("web1")["state"] != "running"
    return result


def test_there_and_back(bed, vm):
    with bed.probe(*STREAMS) as probe:
        for here, there in ((bed.a, bed.b), (bed.b, bed.a), (bed.a, bed.b)):
            probe.mark()
            result = move(bed, vm, here, there, "--transport=tcp")
            probe.assert_alive(gap_ms=longest_gap(result))
            table = result["conntrack"]
            assert table["applied"] >= TCP and (table["lost"], table["refused"]) == (0, 0), table
            assert result["transport"] == "tcp" and result["warnings"] == []
            assert 0 < result["steps"]["commit_to_resume"] < result["pause_ms"] < result["total_ms"]


@pytest.mark.skipif("VMFERRY_TEST_QEMU" in os.environ, reason="QEMU before 9.0 reads every page")
@pytest.mark.parametrize("machine", ["q35", "pc-q35-7.2"])
def test_zero_pages(bed, machine):
    """Over two connections what the guest has never written takes no memory on the target, also with a machine older than that."""
    bed.a.start("web1", Guest(), memory="512M", machine=machine)
    move(bed, Guest(), bed.a, bed.b, "--transport=tls")
    [pid] = qemus(bed.b)
    shared = re.search(r"RssShmem:\s+(\d+) kB", pathlib.Path(f"/proc/{pid}/status").read_text())
    assert int(shared.group(1)) < 256 * 1024, shared


def logins(host):
    return (host.dir / "sshd.log").read_text().count("Accepted publickey")


@pytest.mark.parametrize("transport", ["tcp", "tls", "ssh", "tunnel"])
def test_transports_over_ssh(bed, vm, transport):
    """One login, whatever goes through it, and phases that account for the whole time."""
    with bed.probe(*STREAMS) as probe:
        for here, there in ((bed.a, bed.b), (bed.b, bed.a)):
            probe.mark()
            channels = ["--channels=2"] if there is bed.b else []
            before = logins(there)
            result = move(bed, vm, here, there, f"--transport={transport}", *channels, destination=there.ssh)
            assert result["transport"] == transport and logins(there) == before + 1
            assert sum(result["phases"].values()) == pytest.approx(result["total_ms"], abs=5)
            probe.assert_alive(gap_ms=longest_gap(result))


@contextlib.contextmanager
def slow_line(*hosts):
    """20 Mbit/s, and up to 4 MB that stand in front of whatever comes next: 1.6 s."""
    for host in hosts:
        host.run("tc", "qdisc", "add", "dev", "mig0", "root", "tbf", "rate", "20mbit", "burst", "32k", "limit", "4m")
    try:
        yield
    finally:
        for host in hosts:
            host.run("tc", "qdisc", "del", "dev", "mig0", "root")


@pytest.mark.long
def test_slow_line_is_not_cut(bed, vm):
    """Memory and messages share one ssh connection: to stand behind memory is no silence."""
    with slow_line(bed.a, bed.b):
        result = move(bed, vm, bed.a, bed.b, "--transport=ssh", "--deadline=link=2", destination=bed.b.ssh)
    assert result["phases"]["Perform"] > 5000, result


def test_transport_by_itself(bed, vm):
    result = move(bed, vm, bed.a, bed.b, destination=bed.b.ssh)
    assert result["transport"] == "tls" and result["transport_reason"]


def test_without_connection_table(bed, vm):
    """The contrast: the same move, and nothing of TCP survives; it is said before."""
    with bed.probe("ping,10.0.0.5", "ping,fd00::5", "hold,10.0.0.5,count=20") as probe:
        result = move(bed, vm, bed.a, bed.b, "--transport=tcp", "--conntrack=off")
        assert not any(s["alive"] for s in probe.check(2))
        assert result["warnings"]


def test_memory_arrives_whole(bed, vm):
    bed.ask(vm, "fill 48")
    bed.ask(vm, "dirty 10")
    move(bed, vm, bed.a, bed.b, "--transport=tcp")
    bed.ask(vm, "stop")
    assert not bed.ask(vm, "check").endswith(" 0 rewritten")


def test_connections_opened_while_memory_moves(bed, vm):
    """What is new since the first dump of the table travels too."""
    bed.ask(vm, "fill 32")
    words = ["migrate", "web1", bed.b.exec_destination(), "--transport=tcp", "--bandwidth=4M", "--json", "--progress=none"]
    mover = bed.a.popen("vmferry", *words, stdout=subprocess.DEVNULL)
    wait_until(lambda: (bed.a.status("web1").get("migration") or {}).get("state") == "perform")
    with contextlib.ExitStack() as stack:
        opened = []

        def echo(s):
            s.sendall(b"x")
            return s.recv(1)

        while mover.poll() is None and len(opened) < 500:
            opened.append(stack.enter_context(bed.connect(vm.ip4, ECHO)))
            echo(opened[-1])
            if len(opened) == 30:
                bed.a.vmferry("set", "web1", "bandwidth=1G")
        assert mover.wait(LIMIT) == 0 and len(opened) >= 30
        assert [echo(s) for s in opened] == [b"x"] * len(opened)


def test_paused_stays_paused(bed, vm):
    bed.a.vmferry("pause", "web1")
    bed.a.migrate("web1", bed.b, "--transport=tcp")
    assert bed.b.status("web1")["state"] == "paused"
    bed.b.vmferry("resume", "web1")
    bed.ask(vm, "bootid")


@pytest.mark.long
def test_there_and_back_200_times(bed, vm):
    """The same connections all the way; keepers and QEMUs come and go, and none leaves anything."""
    with bed.probe(*LIGHT) as probe:
        for n, (here, there) in enumerate([(bed.a, bed.b), (bed.b, bed.a)] * 200, 1):
            result = move(bed, vm, here, there, "--transport=tcp")
            assert result["warnings"] == [] and result["conntrack"]["lost"] == 0, (n, result)
            probe.assert_alive(60)
            print(f"{n} moves", flush=True)


@pytest.mark.parametrize("count, rounds", [(6, 1), pytest.param(20, 3, marks=pytest.mark.long)])
def test_many_at_once(bed, count, rounds):
    """Over ssh to an sshd with its usual settings, which from ten logins at once on turns some away (MaxStartups 10:30:100)."""
    guests = {f"vm{n}": Guest(10 + n) for n in range(count)}
    for name, guest in guests.items():
        bed.a.define(name, guest, memory="96M")
    bed.a.vmferry("start", *guests, timeout=300)
    for name in guests:
        wait_file(bed.a.runtime / name / "console.log", "READY", limit=300)
    bed.flush_switch()
    hosts = [bed.a, bed.b]
    with bed.probe(*[f"ping,{guest.ip4},interval=100" for guest in guests.values()]) as probe:
        for _ in range(rounds):
            movers = [hosts[0].popen("vmferry", "migrate", name, hosts[1].ssh, "--transport=ssh", "--json") for name in guests]
            assert [mover.wait(300) for mover in movers] == [0] * count
            probe.assert_alive(30)
            assert hosts[0].wait_clean(limit=30) == []
            hosts.reverse()


def test_stop_leaves_nothing(bed, vm):
    move(bed, vm, bed.a, bed.b, "--transport=tcp")
    bed.b.vmferry("stop", "web1")
    assert bed.b.wait_clean() == []


def test_memory_waits_for_a_large_connection_table(bed, vm):
    """A guest of 128 MiB is copied sooner than 60,000 connections: it must not stand still for what is lacking of them."""
    many = 60000
    fill = bed.a.run(BUILD / "bench/ct-bench", "fill", vm.ip4, "0", str(many)).stdout
    assert json.loads(fill)["applied"] == many
    result = move(bed, vm, bed.a, bed.b, "--transport=tcp")
    table = result["conntrack"]
    assert table["applied"] >= many and (table["lost"], table["failed"]) == (0, 0), table
    assert table["last_delta_entries"] < 100 and table["gate"] == "barrier", table
    assert result["warnings"] == []
