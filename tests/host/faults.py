# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults at the engine's actions, for builds with -Dfaults=true, and a guest that notices (tests/bare/bare.c).

Every keeper tells an Injector of each action before and after it, and waits for its answer: what a test does there
happens at that very point. Nothing here depends on time but the limits after which a test has failed.
"""

import contextlib
import fcntl
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest
from netns import kill
from rawqemu import Qmp
from testbed import BUILD, LIMIT, Guest, section

# What stands still is found by its limit: the link, and data that no packet gets through for. The others are far away.
DEADLINES = "deadlines { connect = 30 prepare = 60 no-progress = 10 switchover = 10 finish = 5 link = 3 }\n"


class Injector:
    """Listens to the keepers of some hosts. @plan: {(host, action, when): what to do}, each done once.

    What to do is called and may return a word for the keeper: "link", "cancel", "powerdown" (src/keeper/fault.c).
    """

    def __init__(self, hosts):
        self.plan, self.struck, self.seen = {}, [], []
        self.busy = False  # something is being done to the hosts
        self.changed = threading.Condition()
        self.listening = {}
        for host in hosts:
            s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            s.bind(str(host.config / "fault.socket"))
            s.listen(16)
            self.listening[s] = host
        self.stop, self.stopped = os.pipe()
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            ready = select.select([self.stop, *self.listening], [], [])[0]
            if self.stop in ready:
                return
            for s in ready:
                with s.accept()[0] as keeper, contextlib.suppress(OSError):
                    line = b""
                    while not line.endswith(b"\n") and (more := keeper.recv(256)):
                        line += more
                    _, action, when = line.decode().strip().split(":")
                    keeper.sendall(self.reached(self.listening[s], action, when).encode())

    def reached(self, host, action, when):
        point = (host, action, when)
        with self.changed:
            what = self.plan.pop(point, None)
            self.busy = True
        word = what() if what else None
        with self.changed:
            self.busy = False
            if what:
                self.struck.append(point)
            self.seen.append(point)
            self.changed.notify_all()
        return word or ""

    def wait(self, happened, limit=LIMIT):
        """Until happened() is true; it is asked again after every action."""
        with self.changed:
            return self.changed.wait_for(happened, limit)

    def wake(self):
        with self.changed:
            self.changed.notify_all()

    def begin(self, plan):
        with self.changed:
            self.plan, self.struck, self.seen = dict(plan), [], []

    def no_more(self):
        with self.changed:
            self.plan = {}

    def close(self):
        os.write(self.stopped, b".")
        self.thread.join(10)
        for s, host in self.listening.items():
            s.close()
            (host.config / "fault.socket").unlink(missing_ok=True)


# ---- storage that does not answer ----

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878  # linux/fs.h


class Storage:
    """A file system of its own, which can be made to take no writes: who writes sleeps, and no signal ends that."""

    def __init__(self, where, size=8 << 20):
        self.dir = where / "storage"
        self.dir.mkdir()
        image = where / "storage.img"
        with open(image, "wb") as file:
            file.truncate(size)
        subprocess.run(["mkfs.ext4", "-q", image], check=True)
        if subprocess.run(["mount", "-o", "loop,noatime", image, self.dir], capture_output=True, check=False).returncode != 0:
            pytest.skip("needs loop devices")
        self.fd = os.open(self.dir, os.O_RDONLY)
        self.frozen = False

    def freeze(self, on):
        fcntl.ioctl(self.fd, FIFREEZE if on else FITHAW, 0)
        self.frozen = on

    def close(self):
        if self.frozen:
            self.freeze(False)
        os.close(self.fd)
        subprocess.run(["umount", "-l", self.dir], check=True)


# ---- processes ----


def keepers(host, vm="web1"):
    return [p for p, line in host.processes().items() if "vmferry run " in line and "--parent" not in line and line.split()[-1] == vm]


def parents(host, vm="web1"):
    return [p for p, line in host.processes().items() if "vmferry run --parent" in line and line.split()[-1] == vm]


def shut_down_unheard(bed, host, guest, vm="web1"):
    """The guest shuts down between two keepers: the one dies before it hears of it, the next one finds the QEMU like that."""
    [keeper], [parent] = keepers(host, vm), parents(host, vm)
    sockets = sorted((host.runtime / vm).glob("qemu.*/qmp"), key=lambda path: int(path.parent.name[5:]))
    for pid in (parent, keeper):
        os.kill(pid, signal.SIGSTOP)
    try:
        bed.ask(guest, "poweroff")
        os.kill(keeper, signal.SIGKILL)
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(LIMIT)
            s.connect(str(sockets[0]))  # it listens until the dead one's connection has ended
            qmp, end = Qmp(s), time.monotonic() + LIMIT
            while qmp("query-status")["status"] != "shutdown":
                assert time.monotonic() < end
                select.select([], [], [], 0.05)
    finally:
        os.kill(parent, signal.SIGCONT)


def qemus(host, vm="web1"):
    return [p for p, line in host.processes().items() if f"guest={vm}," in line]


def transport(*hosts):
    """What carries control and data between hosts."""
    found = []
    for host in hosts:
        # Not a client, which names its destination, nor what looks for leaks at its end: without that it would never end.
        lines = {p: line for p, line in host.processes().items() if "vmferry migrate" not in line}
        found += [p for p, line in lines.items() if "vmferry receive" in line or re.match(r"(\S*/)?ssh ", line)]
    return found


def streams(desk, far_end):
    """The ssh of a direct migration's client, those with "vmferry control" (source) or "vmferry receive" (target) at the far end."""
    return [p for p, line in desk.processes().items() if re.match(r"(\S*/)?ssh ", line) and line.endswith(far_end)]


def everything(host):
    """All that a reboot ends: keepers before QEMUs, so that nobody is told of anything."""
    rest = [p for p in host.netns.pids() if p not in {c.pid for c in host.children} or p == getattr(host, "desk", None)]
    first = parents(host) + keepers(host)
    return first + [p for p in rest if p not in first]


# ---- hosts that reboot ----


def go_down(host):
    """Power fails: processes and the runtime directory are gone, the state directory is kept, nobody answers."""
    with contextlib.suppress(FileNotFoundError):
        host.enter.rename(host.dir / "enter.down")
    host.cut()
    kill(everything(host))
    for path in host.runtime.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def come_up(host, *vms):
    """Boot: what was running or is to run is started, as vmferry@NAME.service or --autostart would."""
    host.heal()
    (host.dir / "enter.down").rename(host.enter)
    return [host.vmferry("start", vm, check=False) for vm in vms]


def is_down(host):
    return (host.dir / "enter.down").exists()


# ---- the guest ----


class Bare(Guest):
    """A guest without an operating system."""

    kernel, initrd = str(BUILD / "tests/bare/bare"), None

    def __init__(self, number=5):
        super().__init__(number)
        self.append = None


def beats(host, vm="web1", both_wrote=False):
    """[(boot, n)] of what the guest has said here; it must not have said that anything is bad.

    @both_wrote: it ran twice, so that its disk is not what it remembers.
    """
    path = host.runtime / vm / "console.log"
    text = path.read_text(errors="replace") if path.exists() else ""
    assert not re.search("BAD (?!disk )" if both_wrote else "BAD", text), text[-500:]
    return [(boot, int(n)) for boot, n in re.findall(r"^ok ([0-9a-f]+) (\d+)\n", text, re.M)]


def wait_beats(host, vm="web1", more=2, limit=LIMIT, both_wrote=False):
    """Wait until the guest has been through all its memory @more times from now on; return the last beat."""
    before, end = len(beats(host, vm, both_wrote)), time.monotonic() + limit
    while len(found := beats(host, vm, both_wrote)) < before + more:
        assert time.monotonic() < end, f"on {host.name}: the guest of {vm} stands still: {found[-3:]}"
        select.select([], [], [], 0.02)
    return found[-1]


class Pair:
    """Two hosts and web1, which is on one of them, with a disk both see.

    @transport: one of vmferry's, or "direct": from a third machine, the hosts do not reach each other; or "beside": the
    client is on the source's host, and reaches the target in its own way.
    """

    def __init__(self, bed, transport="tcp", text=DEADLINES, **conf):
        self.bed, self.transport = bed, transport
        if transport == "direct":
            bed.separate()
        self.here, self.there = bed.a, bed.b
        for host in bed.hosts:
            host.write_conf(text, **conf)
        self.disk = bed.dir / "disk.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", self.disk, "8M"], check=True)
        self.disk.chmod(0o666)
        self.guest = Bare()
        self.define(bed.a)
        self.injector = Injector(bed.hosts)
        self.stopped = []
        self.beat = ("", 0)
        self.failed = False
        self.rebooted = set()

    def define(self, host):
        disk = section("disk vda", file=str(self.disk), format="qcow2", cache="none", bus="virtio", shared=True)
        host.define("web1", self.guest, disk, memory="16M")

    def boot(self):
        self.here.vmferry("start", "web1")
        self.note()

    def note(self):
        self.beat = wait_beats(self.here, more=1)

    def close(self):
        self.injector.close()

    # ---- one migration, with what is to happen on the way ----

    @property
    def direct(self):
        return self.transport in ("direct", "beside")

    @property
    def desk(self):
        """Where the client is."""
        return self.bed.operator if self.transport == "direct" else self.here

    def words(self, verb, *options):
        if self.transport == "direct":
            return ["vmferry", "-H", self.here.ssh, verb, "web1", self.there.ssh, "--direct", "--json", *options]
        destination = self.there.ssh if self.transport == "ssh" else self.there.exec_destination()
        how = "--direct" if self.transport == "beside" else f"--transport={self.transport}"
        return ["vmferry", verb, "web1", destination, how, "--json", *options]

    def start_migration(self, *options):
        """Its output goes into files: what a client starts may outlive it, and has its standard error."""
        logs = [open(self.bed.dir / name, "w+") for name in ("client.out", "client.err")]
        desk = self.desk
        self.client = desk.popen(*self.words("migrate", *options), stdout=logs[0], stderr=logs[1])
        self.desk_pid(self.client.pid)
        self.output = None

        def wait():
            self.client.wait()
            desk.children.remove(self.client)
            self.output = [log.seek(0) or log.read() for log in logs]
            for log in logs:
                log.close()
            self.injector.wake()

        self.waiter = threading.Thread(target=wait, daemon=True)
        self.waiter.start()

    def desk_pid(self, pid):
        """A client on a host ends with it."""
        for host in self.bed.hosts:
            host.desk = pid if host is self.desk else None

    def wait_client(self, limit=LIMIT):
        self.waiter.join(limit)
        assert not self.waiter.is_alive(), "the client does not end"
        return self.client.returncode

    def in_doubt(self):
        return any(action == "RECONNECT" for _, action, _ in self.injector.seen)

    def ended(self):
        return self.output is not None

    # ---- how it ended ----

    def state(self, host):
        """What the keeper there has noted, None without one."""
        with contextlib.suppress(OSError, ValueError):
            return json.loads((host.runtime / "web1" / "state").read_text())["state"]

    def busy(self):
        """Why this is not the end yet, or None."""
        for host in self.bed.hosts:
            path = host.runtime / "web1"
            if (path / "move").exists():
                return f"{host.name}: a migration"
            if (state := self.state(host)) not in (None, "running", "shut off"):
                return f"{host.name}: {state}"
            if len(qemus(host)) > 1:
                return f"{host.name}: two QEMUs"
        if all(qemus(host) for host in self.bed.hosts):
            return "a QEMU on both hosts"
        return None

    def settle(self, limit=2 * LIMIT):
        """Wait for the end; return the hosts where a guest runs. Never may there be two."""
        end = time.monotonic() + limit
        while True:
            why = self.busy()
            if why:
                self.bring_client()
            found = {host: (host.status("web1") or {}).get("state") for host in self.bed.hosts} if not why else {}
            running = [host for host, state in found.items() if state == "running"]
            assert len(running) < 2, f"two guests run: {found}"
            if not why and all(state in ("running", "off", "moved", None) for state in found.values()):
                return running
            assert time.monotonic() < end, f"no end: {why or {h.name: s for h, s in found.items()}}"
            select.select([], [], [], 0.03)

    def bring_client(self):
        """In doubt without a client that reaches both hosts: that does not resolve by itself, another one has to come."""
        if self.direct and self.ended() and self.state(self.here) == "in-doubt":
            self.desk.run(*self.words("recover"), check=False)

    def only_the_vm(self, host, limit=LIMIT):
        """What one running VM needs is here, and nothing else."""

        def found():
            lines = host.processes()
            wrong = [f"{len(who(host))} {who.__name__}" for who in (parents, keepers, qemus) if len(who(host)) != 1]
            wrong += [f"process {p}: {line}" for p, line in lines.items() if p in transport(host) or re.search("vmferry (migrate|recover|control)", line)]
            wrong += [line for line in host.leftovers() if line.startswith("port ")]
            wrong += [str(p) for p in host.runtime.glob("web1/*") if p.name in ("move", "data", "start")]
            wrong += [str(p) for p in host.runtime.glob("web1/qemu.*")][1:]
            return wrong

        end = time.monotonic() + limit
        while wrong := found():
            assert time.monotonic() < end, f"left on {host.name}: {wrong}"
            select.select([], [], [], 0.03)

    def clean(self):
        """Nothing of the attempt is left."""
        for host in self.bed.hosts:
            if host is self.here:
                self.only_the_vm(host)
            else:
                left = host.wait_clean()
                assert left == [], f"left on {host.name}: {left}"
            # What a power failure leaves in the state directory, the next keeper sweeps up.
            stray = [p.name for p in host.state.glob("web1/definition.*") if host not in self.rebooted]
            assert not stray, f"left on {host.name}: {stray}"
        self.no_streams()
        probes = [p.name for p in self.bed.dir.glob("disk.qcow2.*")]
        assert not probes, probes

    def no_streams(self):
        """What a direct migration's client has begun ends with the migration, whoever was killed."""
        end = time.monotonic() + LIMIT
        while left := [line for line in self.bed.operator.processes().values() if "ssh " in line]:
            assert time.monotonic() < end, f"left where the client was: {left}"
            select.select([], [], [], 0.03)

    def check_disk(self):
        """The image has no error. Clusters that a killed QEMU had just taken may be unused; that is not one."""
        done = subprocess.run(["qemu-img", "check", "-q", "-U", self.disk], capture_output=True, text=True)
        assert done.returncode in (0, 3), done.stdout + done.stderr

    def start_where_it_may(self):
        """The guest is off: exactly one of the hosts may start it.

        A source that has committed is in doubt when it is asked to start (docs/protocol.md, "Restart"): it asks the target
        first, and starts the guest if that never took it.
        """
        for host in self.bed.hosts:
            left = host.wait_clean()
            assert left == [], f"left on {host.name}: {left}"
        self.check_disk()
        told = {}
        for host in (self.here, self.there):
            done = host.vmferry("start", "web1", check=False)
            told[host.name] = done.stdout + done.stderr
            may = self.settle()
        assert len(may) == 1, told
        self.moved_to(may[0])
        self.note()

    def moved_to(self, host):
        if host is not self.here:
            self.here, self.there = self.there, self.here

    def assert_one(self, lost_allowed=False, boot_allowed=False):
        """Exactly one guest runs, memory intact; or, where the fault took it away, exactly one host may start it."""
        running = self.settle()
        if not running:
            assert lost_allowed, "no guest runs"
            self.start_where_it_may()
            return
        self.moved_to(running[0])
        boot, n = wait_beats(self.here)
        if boot == self.beat[0]:
            assert n > self.beat[1], f"the guest went back in time: {self.beat} -> {n}"
        else:
            assert boot_allowed, f"the guest was started again: {self.beat} -> {(boot, n)}"
        self.beat = (boot, n)
        self.clean()

    # ---- victims ----

    def stop(self, pids):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self.stopped.append(pid)

    def go_on(self):
        for pid in self.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.stopped = []
