# SPDX-License-Identifier: GPL-2.0-or-later
"""vmferry-vmstate: QEMUs that a script moves, with nothing of vmferry but its D-Bus helper beside each."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest

from rawqemu import Qmp, RawQemu, migrate, stamp
from testbed import BUILD, LIMIT, Guest, Testbed, wait_until
import vmbus
from vmbus import CONNTRACK, TOOL, Bus, qmp_option

FILL = BUILD / "bench/ct-bench"
OLD_QEMU = "/usr/bin/qemu-system-x86_64"
PATIENT = "--wait=20s"  # this machine may be busy: nothing here is about time unless it says so
LONG = pytest.mark.skipif(not os.environ.get("VMFERRY_TEST_LONG"), reason="long")


@pytest.fixture
def bed():
    with Testbed(ct_events=1) as bed:
        yield bed


@pytest.fixture
def buses(bed):
    buses = {host: Bus(host) for host in (bed.a, bed.b)}
    yield buses
    for bus in buses.values():
        bus.close()


def start(bus, guest, name="web1", *options):
    return vmbus.start(bus, guest, name, PATIENT, *options)


def log_of(host):
    return (host.dir / "web1.vmstate.log").read_text()


def fill(host, guest, n):
    host.run("conntrack", "-F")
    done = json.loads(host.run(FILL, "fill", guest.ip4, "0", str(n)).stdout) if n else {"applied": 0}
    assert done["applied"] == n


@contextlib.contextmanager
def logging_to(host):
    """The helper's log is a pipe, which can be full: who has something to say then sleeps."""
    path = host.dir / "web1.vmstate.log"
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
    try:
        yield pipe
    finally:
        os.close(pipe)


def move_bounded(source, to, target, buses, probe):
    """A move with a helper that hangs on the source, and one that is given too little time on the target."""
    guest, here = source.guest, source.host
    with logging_to(here) as full, logging_to(to) as said:
        for host, pipe, wait in ((here, full, "100ms"), (to, said, "1ms")):
            vmbus.start(buses[host], guest, "web1", f"--wait={wait}")
        os.read(full, 4096)
        os.write(full, bytes(4096))
        probe.mark()
        qemu, row = migrate(source, to, target=target)
        probe.assert_alive(LIMIT)
        helper = buses[to].helpers()["vmferry-web1"]
        assert row["pause_ms"] < 10000
        assert helper["migrated"] >= 5101 and helper["migrated"] - 1000 <= helper["late"] <= helper["migrated"], helper
        assert helper["gate_waits"] == {"completed": 0, "timeout": 1}
        assert f"{helper['late']} entries after the guest ran" in os.read(said, 4096).decode()
    return qemu


@pytest.mark.parametrize("program", [None, OLD_QEMU], ids=["new", "old"])
def test_connections_survive(bed, buses, program):
    """A guest moves from a to b by script, its entries in QEMU's stream; and back, where they come after it or from a helper that hangs."""
    guest, target = Guest(), None
    qemu = RawQemu(bed.a, guest, options=qmp_option(bed.a), machine="pc-q35-7.2", program=program).wait_ready(3 * LIMIT)
    try:
        fill(bed.a, guest, 5000)
        # QEMU 7.2 as the source loses a guest that writes much memory under TCG: an idle one there
        busy = [f"bulk,{guest.ip4}", f"ping,{guest.ip4}"] if program != OLD_QEMU else []
        with bed.probe(*busy, f"ping,{guest.ip6},interval=500", f"hold,{guest.ip4},count=100") as probe:
            start(buses[bed.a], guest)
            probe.mark()
            target = RawQemu(bed.b, guest, incoming=True, machine="pc-q35-7.2", options=qmp_option(bed.b))
            start(buses[bed.b], guest)
            qemu, target = migrate(qemu, bed.b, target=target)[0], None
            probe.assert_alive(LIMIT)
            assert buses[bed.b].helpers()["vmferry-web1"]["late"] == 0
            stopped = json.loads(buses[bed.b].tool("stop", "web1", "--json").stderr)
            assert stopped["event"] == "stopped" and stopped["entries"] >= 5101, stopped
            wait_until(lambda: not buses[bed.a].helpers() and not buses[bed.b].helpers())
            bed.a.run("conntrack", "-F")
            target = RawQemu(bed.a, guest, incoming=True, machine="pc-q35-7.2", program=program, options=qmp_option(bed.a))
            qemu, target = move_bounded(qemu, bed.a, target, buses, probe), None
    finally:
        for one in (qemu, target):
            if one:
                one.close()
    assert bed.a.wait_clean() == [] and bed.b.wait_clean() == []


def test_helper_of_each_vm(bed, buses):
    """Several on one bus; each is told apart by its Id, and ends with its VM or when told to."""
    bus = buses[bed.a]
    guests = [Guest(5), Guest(6)]
    qemus = [RawQemu(bed.a, guest, options=qmp_option(bed.a, f"web{guest.number}")) for guest in guests]
    try:
        for guest in guests:
            start(bus, guest, f"web{guest.number}")
        assert set(bus.helpers()) == {"vmferry-web5", "vmferry-web6"}
        again = start(bus, guests[0], "web5")
        assert "left by an earlier run" in again.stderr
        assert len(bus.helpers()) == 2
        bus.tool("stop", "web5")
        wait_until(lambda: set(bus.helpers()) == {"vmferry-web6"})
        qemus[1].close()
        wait_until(lambda: not bus.helpers())
    finally:
        qemus[0].close()
    assert bed.a.wait_clean() == []


def is_door(pid):
    with contextlib.suppress(OSError):  # it has ended meanwhile
        return pathlib.Path(f"/proc/{pid}/comm").read_text() == "vmstate-door\n"


def helper_of(host, door=False):
    """The process that knows the entries, or the one between it and QEMU."""
    def found():
        pids = [pid for pid, line in host.processes().items() if "vmferry-vmstate run" in line]
        mine = [pid for pid in pids if is_door(pid) == door]
        return mine[0] if len(mine) == 1 else None  # another may settle what it has loaded before
    return wait_until(found)


def test_helper_killed(bed, buses):
    """What it left in QEMU is no obstacle to the next one."""
    bus, guest = buses[bed.a], Guest()
    qemu = RawQemu(bed.a, guest, options=qmp_option(bed.a))
    try:
        start(bus, guest)
        os.kill(helper_of(bed.a), signal.SIGKILL)
        wait_until(lambda: not bus.helpers())
        start(bus, guest)
        assert set(bus.helpers()) == {"vmferry-web1"}
        bus.tool("stop", "web1")
        wait_until(lambda: not bus.helpers())
        with pytest.raises(RuntimeError, match="not found"):
            qemu.qmp("object-del", id="vmferry-vmstate")
    finally:
        qemu.close()


# ---- through QEMU's stream ----


@pytest.mark.parametrize("sizes", [(0, 1, 5000), pytest.param((100000,), marks=LONG)], ids=str)
def test_sizes(bed, buses, sizes):
    """What fits in 1 MiB comes, and is counted on both sides; of what does not at least 25,000."""
    guest, here, there = Guest(), bed.a, bed.b
    source = RawQemu(here, guest, options=qmp_option(here)).wait_ready(3 * LIMIT)
    target = None
    try:
        for entries in sizes:
            fill(here, guest, entries)
            there.run("conntrack", "-F")
            for host in bed.hosts:
                (host.dir / "web1.vmstate.log").unlink(missing_ok=True)
            start(buses[here], guest)
            target = RawQemu(there, guest, incoming=True, options=qmp_option(there))
            start(buses[there], guest)
            wait_until(lambda: buses[here].helpers()["vmferry-web1"]["followed"] >= entries, 60)
            source, target = migrate(source, there, target=target)[0], None
            assert source.qmp("query-status")["status"] == "running"
            ((count, size),) = [map(int, found) for found in re.findall(r"saved (\d+) entries, (\d+) bytes", log_of(here))]
            assert re.findall(r"loaded (\d+) of (\d+) entries", log_of(there)) == [(str(count), str(count))]
            assert 1 <= size <= 1 << 20 and len(there.conntrack("-s", guest.ip4, "-p", "tcp")) >= min(entries, count)
            left = re.findall(r"(\d+) entries found no room", log_of(here))
            assert (count >= entries and not left) if entries < 25000 else (count >= 25000 and int(left[0]) >= entries - count)
            for bus in buses.values():
                bus.tool("stop", "web1", check=False)
            wait_until(lambda: not buses[here].helpers() and not buses[there].helpers())
            here, there = there, here
    finally:
        for qemu in (source, target):
            if qemu:
                qemu.close()


def test_killed_during_save(bed, buses):
    """What stands between it and QEMU answers in its place, with what the helper has laid down for that."""
    guest = Guest()
    source = RawQemu(bed.a, guest, options=qmp_option(bed.a))
    target = RawQemu(bed.b, guest, incoming=True, options=qmp_option(bed.b))
    try:
        fill(bed.a, guest, 100)
        for bus in buses.values():
            start(bus, guest)
        pid = helper_of(bed.a)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"{bed.a.dir}/web1.qmp")
            watch = Qmp(sock)
            os.kill(pid, signal.SIGSTOP)  # so that Save does not end before it is killed

            def kill_it():
                watch.wait("STOP")
                os.kill(pid, signal.SIGKILL)
            killer = threading.Thread(target=kill_it)
            killer.start()
            try:
                source, target = migrate(source, bed.b, target=target)[0], None
            finally:
                killer.join()
        assert source.qmp("query-status")["status"] == "running"
        assert "loaded 100 of 100 entries" in log_of(bed.b) and "saved" not in log_of(bed.a)
    finally:
        for qemu in (source, target):
            if qemu:
                qemu.close()
    assert bed.a.wait_clean() == []


HUNG = {  # what hangs, on which side: when the entries come
    "nothing": (lambda bus: [], lambda bus: [], "in time"),
    "buses": (lambda bus: [bus.process.pid], lambda bus: [bus.process.pid], "in time"),
    "source's helper": (lambda bus: [helper_of(bus.host)], lambda bus: [], "in time"),
    "target's helper": (lambda bus: [], lambda bus: [helper_of(bus.host)], "late"),
}


def test_hung(bed, buses):
    """QEMU would wait 25 s with the guest stopped for what hangs just before: the pause is as without, and the guest moves."""
    guest, here, there, pauses = Guest(), bed.a, bed.b, {}
    source = RawQemu(here, guest, options=qmp_option(here))
    target, stopped = None, []
    try:
        for what, (at_source, at_target, comes) in HUNG.items():
            fill(here, guest, 100)
            there.run("conntrack", "-F")
            for host in (here, there):
                (host.dir / "web1.vmstate.log").unlink(missing_ok=True)
            target = RawQemu(there, guest, incoming=True, options=qmp_option(there))
            for host in (here, there):
                start(buses[host], guest, "web1", "--settle=1ms")
            wait_until(lambda: buses[here].helpers()["vmferry-web1"]["followed"] >= 100)
            stopped = at_source(buses[here]) + at_target(buses[there])
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            (source, row), target = migrate(source, there, target=target), None
            pauses[what] = row["pause_ms"]
            assert source.qmp("query-status")["status"] == "running"
            loaded = len(there.conntrack("-s", guest.ip4, "-p", "tcp"))
            assert loaded == (100 if comes == "in time" else 0), what
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            stopped = []
            if comes == "late":
                wait_until(lambda: len(there.conntrack("-s", guest.ip4, "-p", "tcp")) == 100)
                helper = buses[there].helpers()["vmferry-web1"]
                assert helper["gate_waits"] == {"completed": 0, "timeout": 1} and helper["late"] == helper["migrated"] == 100
                assert "100 entries after the guest ran" in log_of(there)
            for bus in buses.values():
                bus.tool("stop", "web1", check=False)
            wait_until(lambda: not buses[here].helpers() and not buses[there].helpers())
            here, there = there, here
        assert all(pause < pauses["nothing"] + 5000 for pause in pauses.values()), pauses
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        for qemu in (source, target):
            if qemu:
                qemu.close()
    assert bed.a.wait_clean() == [] and bed.b.wait_clean() == []


def test_stopped_door(bed, buses):
    """It is continued, or made anew; what comes through the new one arrives."""
    guest = Guest()
    source = RawQemu(bed.a, guest, options=qmp_option(bed.a))
    target = RawQemu(bed.b, guest, incoming=True, options=qmp_option(bed.b))
    try:
        fill(bed.a, guest, 3)
        for bus in buses.values():
            start(bus, guest)
        door = helper_of(bed.a, door=True)
        os.kill(door, signal.SIGSTOP)
        wait_until(lambda: "goes on" in log_of(bed.a))
        os.kill(door, signal.SIGKILL)
        wait_until(lambda: "made anew" in log_of(bed.a))
        wait_until(lambda: helper_of(bed.a, door=True) != door)
        os.kill(helper_of(bed.b, door=True), signal.SIGSTOP)  # until its helper sees that, which QEMU waits for
        source, target = migrate(source, bed.b, target=target)[0], None
        assert len(bed.b.conntrack("-s", guest.ip4, "-p", "tcp")) == 3
    finally:
        for qemu in (source, target):
            if qemu:
                qemu.close()


def test_all_stopped(bed, buses):
    """The kernel ends a door that nobody continues, so QEMU does not wait 25 s: the move fails, the guest goes on where it was."""
    cases = [(5, None, bed.a), (6, OLD_QEMU, bed.a), (7, None, bed.b)]  # number, QEMU, where all is stopped
    sources, targets, stopped = [], [], []
    try:
        for number, program, at in cases:
            guest, name = Guest(number), f"web{number}"
            for host, qemus in ((bed.a, sources), (bed.b, targets)):
                qemus.append(RawQemu(host, guest, incoming=host is bed.b, program=program, machine="pc-q35-7.2", options=qmp_option(host, name)))
                start(buses[host], guest, name)
            of = [pid for pid, line in at.processes().items() if "vmferry-vmstate run" in line and line.split()[-1] == name]
            stopped += sorted(of, key=is_door)  # the helper first
        for source, target in zip(sources, targets):
            path = f"{bed.dir}/{source.guest.number}.sock"
            for side in (source, target):
                on = [{"capability": name, "state": True} for name in ("events", "return-path")]
                side.qmp("migrate-set-capabilities", capabilities=on)
            target.qmp("migrate-incoming", uri=f"unix:{path}")
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        for source in sources:
            source.qmp("migrate", uri=f"unix:{bed.dir}/{source.guest.number}.sock")
        for source in sources:
            source.qmp.wait("MIGRATION", status="failed")
            pause = stamp(source.qmp.wait("RESUME")) - stamp(source.qmp.wait("STOP"))
            assert source.qmp("query-status")["status"] == "running" and pause < 15, source.guest.number
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for qemu in sources + targets:
            qemu.close()
    assert bed.a.wait_clean() == [] and bed.b.wait_clean() == []


def saved(text):
    """The bytes in dbus-send's print of an array."""
    return bytes(int(b, 16) for b in re.findall(r"\b[0-9a-f]{2}\b", text[text.index("["):]))


def test_save_and_load(bed, buses):
    """1 byte to 1 MiB whatever the table holds; Load takes anything without an error."""
    bus, guest = buses[bed.a], Guest()
    process = bed.a.popen(TOOL, "run", "web1", f"--bus={bus.address}", f"--address={guest.ip4}", stderr=subprocess.PIPE, text=True)
    try:
        owner = wait_until(lambda: bus.helpers().get("vmferry-web1"))["owner"]
        empty = saved(bus.call(owner, "Save"))
        assert empty[:4] == b"VFCT"
        lines = [f"-A -s {guest.ip4} -d 10.0.9.9 -r 10.0.9.9 -q {guest.ip4} -p tcp --sport {p} --dport 80 --reply-port-src 80 "
                 f"--reply-port-dst {p} -t 300 -u SEEN_REPLY,ASSURED --state ESTABLISHED" for p in range(1000, 6000)]
        bed.a.run(CONNTRACK, "apply", "--address", guest.ip4, "--settle=1", input="\n".join(lines))
        wait_until(lambda: bus.helpers()["vmferry-web1"]["followed"] == 5000)
        full = saved(bus.call(owner, "Save"))
        assert bus.helpers()["vmferry-web1"]["migrated"] == 5000 and len(full) < 1 << 18
        counted = bus.helpers()["vmferry-web1"]
        assert counted["exports"] == {"success": 1, "skipped": 1, "error": 0} and counted["exported_bytes"] == len(empty) + len(full)
        bed.a.run(CONNTRACK, "flush", "--address", guest.ip4)
        for bad in ("array:byte:0", "array:byte:1,2,3", "array:byte:86,70,67,84,9,9,9,9"):
            bus.call(owner, "Load", bad)
            assert bus.helpers()["vmferry-web1"]["migrated"] == 0
        proxmox = "\n".join(line + " --mark 100" for line in lines[:3]) + "\n"
        bus.call(owner, "Load", "array:byte:" + ",".join(map(str, proxmox.encode())))
        assert bus.helpers()["vmferry-web1"]["migrated"] == 3
        bus.call(owner, "Load", "array:byte:" + ",".join(map(str, b"[0]\n")))
        assert bus.helpers()["vmferry-web1"]["migrated"] == 0
        assert sum("mark=100 " in line for line in bed.a.conntrack("-m", "100")) == 3
        counted = bus.helpers()["vmferry-web1"]
        assert counted["imports"] == {"success": 3, "aborted": 0, "error": 2} and counted["gate_waits"] == {"completed": 5, "timeout": 0}
        # Load makes entries unheard: they are known afterwards, and their ends, and who comes then.
        bed.a.run(CONNTRACK, "flush", "--address", guest.ip4)
        wait_until(lambda: bus.helpers()["vmferry-web1"]["followed"] == 0)
        bed.a.netns.sysctl({"net/netfilter/nf_conntrack_events": 2})
        bus.call(owner, "Load", "array:byte:" + ",".join(map(str, proxmox.encode())))
        wait_until(lambda: bus.helpers()["vmferry-web1"]["followed"] == 3)
        bed.a.run(CONNTRACK, "apply", "--address", guest.ip4, "--settle=1", input=lines[3])
        wait_until(lambda: bus.helpers()["vmferry-web1"]["followed"] == 4)
        bed.a.run(CONNTRACK, "flush", "--address", guest.ip4)
        wait_until(lambda: bus.helpers()["vmferry-web1"]["followed"] == 0)
    finally:
        process.terminate()
        assert process.wait(LIMIT) == 0, process.stderr.read()
        process.stderr.close()


def test_proxmox_names(bed, buses):
    bus = buses[bed.a]
    process = bed.a.popen(TOOL, "run", "100", "--proxmox", f"--qmp={bed.a.dir}/none", f"--bus={bus.address}", stderr=subprocess.PIPE, text=True)
    assert process.wait(LIMIT) == 1 and "not running here" in process.stderr.read()
    process.stderr.close()
    qemu = RawQemu(bed.a, Guest(), options=qmp_option(bed.a, "100"))
    try:
        bus.tool("start", "100", "--proxmox", f"--qmp={bed.a.dir}/100.qmp")
        (helper,) = bus.helpers().values()
        assert helper["id"] == "pve-vmstate-100"
        got = bed.a.run("dbus-send", f"--bus={bus.address}", "--type=method_call", "--print-reply", f"--dest={helper['owner']}",
                        "/org/qemu/VMState1", "org.freedesktop.DBus.Properties.Get", "string:com.proxmox.VMStateHelper",
                        "string:NumMigratedEntries").stdout
        assert "uint32 0" in got
        bus.tool("stop", "100", "--proxmox")
    finally:
        qemu.close()


@pytest.mark.parametrize("words, status, said", [
    (["stop", "nobody"], 1, "there is no helper"),
    (["stop"], 2, "which NAME?"),
    (["jump", "web1"], 2, "no verb"),
    (["start", "web1", "--qmp=/none"], 1, "whose entries"),
    (["start", "web1", "--qmp=/none", "--address=10.0.0.5"], 1, "not running here"),
    (["start", "a,b", "--address=10.0.0.5"], 1, "not a VM's name"),
    (["start", "web1", "--proxmox"], 1, "not a VMID"),
])
def test_wrong_use(bed, buses, words, status, said):
    done = buses[bed.a].tool(*words, check=False)
    assert done.returncode == status and said in done.stderr, done


AS_NOBODY = "import os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534); os.execve(int(sys.argv[1]), sys.argv[2:], os.environ)"


def test_permission(bed, buses):
    """Root alone: another is told so, whether a helper is there or not, and it goes on."""
    bus, guest = buses[bed.a], Guest()

    def as_nobody(*words):
        program = os.open(TOOL, os.O_RDONLY)
        address = bus.address.replace("path", "abstract")  # the directory is root's
        try:
            return bed.a.run(sys.executable, "-c", AS_NOBODY, str(program), TOOL, *words, f"--bus={address}", check=False, pass_fds=[program])
        finally:
            os.close(program)

    def refused(done):
        return done.returncode == 1 and ("not permitted" in done.stderr or "run as root" in done.stderr) and done
    begin = [["run", "web1", f"--address={guest.ip4}"], ["start", "web1", f"--address={guest.ip4}"]]
    assert all(refused(as_nobody(*words)) for words in begin)
    bus.tool("start", "web1", f"--address={guest.ip4}")
    for words in [*begin[1:], ["stop", "web1"], ["status"], ["status", "web1"]]:
        done = as_nobody(*words)
        assert refused(done) and "root alone may" in done.stderr and not done.stdout, (words, done)
    assert set(bus.helpers()) == {"vmferry-web1"}
    bus.tool("stop", "web1")
