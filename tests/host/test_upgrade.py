# SPDX-License-Identifier: GPL-2.0-or-later
"""A newer, or older, QEMU under a running guest: it keeps its memory, its connections and its console, whatever goes wrong."""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import time

import pytest
from faults import Injector, Storage, keepers, parents, shut_down_unheard
from netns import command, kill
from testbed import LIMIT, Guest, Testbed, build_option, qemu, section, wait_file, wait_until

OLD = "/usr/bin/qemu-system-x86_64"
MACHINE = "pc-q35-7.2"  # what both know
STREAMS = ["ping,10.0.0.5", "udp,10.0.0.5", "ping,fd00::5", "hold,10.0.0.5,count=20", "bulk,10.0.0.5,pace=5000000"]

CONF = "deadlines {\n connect = 60\n prepare = 60\n link = 60\n}\n"  # nothing here is about these

pytestmark = pytest.mark.skipif(not os.path.exists(OLD), reason="needs Debian's QEMU 7.2 beside 10.0")


@pytest.fixture(scope="module")
def bed():
    with Testbed(sshd=False) as bed:
        for host in bed.hosts:
            host.write_conf(CONF)
        yield bed


def make_disks(host):
    """A qcow2 and a raw image, and their sections."""
    images = {}
    for name, form, size in (("vda", "qcow2", "64M"), ("sda", "raw", "16M")):
        path = host.dir / f"{name}.{form}"
        command("qemu-img", "create", "-q", "-f", form, str(path), size)
        bus = "virtio" if form == "qcow2" else "scsi"
        images[name] = section(f"disk {name}", file=str(path), format=form, bus=bus, cache="none", shared=True)
    return "".join(images.values())


class Home:
    """web1 on host a: two CPUs, two NICs, two disks, a VNC server; its QEMU changes from test to test."""

    def __init__(self, bed):
        self.bed, self.host, self.guest = bed, bed.a, Guest()
        extra = make_disks(bed.a) + section("nic net1", bridge="br0", mac="52:54:00:12:99:05") + section("graphics vnc", listen="127.0.0.1")
        bed.a.start("web1", self.guest, text=extra, machine=MACHINE, binary=OLD, cpus=2, memory="192M", agent=True)
        self.begin()

    def begin(self):
        self.bed.ask(self.guest, "fill 48")
        self.boot = self.bed.ask(self.guest, "bootid")
        self.probe = self.bed.probe(*STREAMS)

    def boot_again(self):
        """After a guest that was lost: nothing is left of it."""
        self.probe.close()
        assert self.host.wait_clean("web1") == []
        self.host.vmferry("start", "web1")
        wait_file(self.host.runtime / "web1" / "console.log", "READY")
        self.bed.flush_switch()
        self.begin()

    def status(self):
        return self.host.status("web1")

    def other(self):
        """The program that it does not run in now."""
        return OLD if self.status()["qemu_version"].startswith("10.") else qemu()

    def newer(self):
        """In a QEMU that can be the source of a copy: 7.2 under TCG corrupts guests that write."""
        if self.status()["qemu_version"].startswith("7"):
            self.upgrade(binary=qemu())

    def upgrade(self, *options, status=0, binary=None):
        done = self.host.vmferry("upgrade", "web1", "--binary", binary or self.other(), "--json", *options, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        return json.loads(done.stdout.strip().split("\n")[-1])

    def unharmed(self):
        assert self.bed.ask(self.guest, "bootid") == self.boot
        self.probe.assert_alive(LIMIT)  # TCP tries again after as long as the guest stood still
        assert self.status()["state"] == "running"
        self.one_qemu()

    def one_qemu(self, name="web1"):
        """One QEMU, one directory of its own, two taps."""
        wait_until(lambda: len(qemus(self.host, name)) == 1)
        wait_until(lambda: len(list((self.host.runtime / name).glob("qemu.*"))) == 1)
        wait_until(lambda: saved_files(self.host) == [])
        assert not (self.host.runtime / name / "move").exists()
        assert not (self.host.runtime / name / "definition.next").exists()


@pytest.fixture(scope="module")
def home(bed):
    return Home(bed)


@pytest.fixture
def web1(home):
    """web1, which must be as it was after the test, with all its connections."""
    home.probe.mark()
    yield home
    home.unharmed()


def qemus(host, name):
    return [pid for pid, line in host.processes().items() if f"guest={name}," in line]


def small(host, name, number, text="", **keys):
    """A VM without a system in it."""
    keys = {"memory": "32M", "kernel": None, "initrd": None, "append": None, "machine": MACHINE, "binary": OLD} | keys
    host.define(name, Guest(number), text, **keys)
    host.vmferry("start", name)


@pytest.fixture
def cleanup(bed):
    """VMs of a test's own, killed at its end."""
    names = []
    yield names.append
    for name in names:
        bed.a.vmferry("kill", name, check=False)
        assert bed.a.wait_clean(name) == []


# ---- it works ----


def test_to_and_fro(bed, web1):
    """Newer, older, newer, under memory that is written all the time; nothing is copied, nothing is lost."""
    bed.ask(web1.guest, "dirty 50")
    for _ in range(4):  # more of them: test_upgrade_mass.py
        before = web1.status()
        result = web1.upgrade()
        after = web1.status()
        assert result["status"] == "completed" and result["kind"] == "upgrade" and result["guest"] == "running here"
        assert result["from"]["version"] == before["qemu_version"] != after["qemu_version"] == result["to"]["version"]
        assert before["pid"] != after["pid"] and not os.path.exists(f"/proc/{before['pid']}")
        assert 0 < result["pause_ms"] < result["total_ms"]
        steps = result["steps"]
        assert set(steps) == {"start", "set_up", "migrate", "device_state", "load", "record", "kill", "cont", "reap"}
        assert all(v >= 0 for v in steps.values()) and steps["start"] > 0
    bed.ask(web1.guest, "stop")
    assert not bed.ask(web1.guest, "check").endswith(" 0 rewritten")


def test_disks_are_the_new_ones(web1):
    """The one that runs holds the images' locks, and can write to them."""
    web1.upgrade()
    for image in ("vda.qcow2", "sda.raw"):
        path = web1.host.dir / image
        refused = web1.host.run("qemu-io", "-f", path.suffix[1:], "-c", "write 0 512", path, check=False)
        assert "lock" in refused.stderr + refused.stdout, (refused.stdout, refused.stderr)


def test_memory_is_the_same(bed, web1):
    """The file both QEMUs mapped is one and the same; a second copy would show in the kernel's figures."""

    before = memory_file(web1)
    web1.upgrade()
    assert memory_file(web1) == before


def memory_file(home):
    """Each lies in a file system of its own, so the inode alone would say nothing."""
    found = os.stat(f"/proc/{home.status()['pid']}/fd/5")
    return found.st_dev, found.st_ino


def test_console_goes_on(bed, web1):
    """A viewer that looks on keeps its connection."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(LIMIT)
        s.connect(str(web1.host.runtime / "web1" / "console"))
        for word in (b"before", b"after"):
            s.sendall(word + b"\n")
            got = b""
            while word not in got:
                data = s.recv(4096)
                assert data, "the console was closed"
                got += data
            if word == b"before":
                web1.upgrade()


def ask_agent(host, word):
    """Connect, say a word until it comes back (before the guest has seen that somebody is there, it reads an end)."""
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    s.connect(str(host.runtime / "web1" / "agent"))
    got, end = b"", time.monotonic() + LIMIT
    while b"agent: " + word not in got:
        assert time.monotonic() < end, got
        s.sendall(word + b"\n")
        if select.select([s], [], [], 1)[0]:
            data = s.recv(4096)
            assert data, "the channel was closed"
            got += data
    return s


def test_agent(bed, web1):
    """Its channel is there after an upgrade, in one place; who was connected is told, and connects again."""
    before = ask_agent(web1.host, b"before")
    for word in (b"after", b"again"):
        web1.upgrade()
        before.settimeout(LIMIT)
        while before.recv(4096):
            pass
        before.close()
        before = ask_agent(web1.host, word)
    before.close()
    restart_keeper(bed.a)
    ask_agent(web1.host, b"restarted").close()


def keeper(host, name):
    """Who has the VM's lock, and is not QEMU."""
    inode = (host.runtime / name / "lock").stat().st_ino
    return next(int(line.split()[4]) for line in open("/proc/locks") if f":{inode} " in line and "FLOCK" in line)


def test_paused_stays_paused(bed, home):
    home.host.vmferry("pause", "web1")
    result = home.upgrade()
    assert result["guest"] == "paused" and "pause_ms" not in result
    assert home.status()["state"] == "paused"
    home.host.vmferry("resume", "web1")
    home.probe.mark()
    home.unharmed()


def test_check_changes_nothing(web1):
    pid = web1.status()["pid"]
    found = web1.upgrade("--check")
    assert found["ok"] and found["way"] == "in place" and found["memory_needed"] < 64 << 20
    assert found["to"]["version"] != found["from"]["version"]
    assert web1.status()["pid"] == pid


def test_then_to_another_host(bed, web1):
    """A migration after an upgrade copies memory again; and an upgrade works on the VM that arrived."""
    web1.newer()
    bed.a.migrate("web1", bed.b, "--transport=tcp")
    try:
        ask_agent(bed.b, b"there").close()
        done = bed.b.vmferry_json("upgrade", "web1", "--binary", OLD)
        assert done["status"] == "completed" and done["to"]["version"].startswith("7.2")
        done = bed.b.vmferry_json("upgrade", "web1")  # what host.conf says
        assert done["to"]["version"].startswith("10.")
    finally:
        bed.b.migrate("web1", bed.a, "--transport=tcp")


def test_lease_goes_with_the_guest(bed, cleanup):
    """It is held all the time: the same generation, by the QEMU that runs now."""
    small(bed.a, "leased", 21, text=section("lease file", path=str(bed.dir / "leased.lease")))
    cleanup("leased")
    before = bed.a.status("leased")
    bed.a.vmferry("upgrade", "leased", "--binary", qemu())
    after = bed.a.status("leased")
    assert after["pid"] != before["pid"] and after["lease"] == before["lease"] and after["lease"]["held"]
    bed.a.vmferry("pause", "leased")
    bed.a.vmferry("upgrade", "leased", "--binary", OLD)
    assert not bed.a.status("leased")["lease"]["held"]
    bed.a.vmferry("resume", "leased")
    assert bed.a.status("leased")["lease"]["held"]


def test_all_at_once(bed, home, cleanup):
    """Several VMs, some at a time; the definitions have changed meanwhile. ^C, an error: each has its own."""
    names = [f"many{n}" for n in range(5)]
    for n, name in enumerate(names):
        small(bed.a, name, 30 + n)
        cleanup(name)
    home.host.vmferry("pause", "web1")  # one that has a person's wish to keep
    for path in (bed.a.config / "vms").glob("*.vm"):
        path.write_text(path.read_text().replace(OLD, qemu()))
    before = {name: bed.a.status(name)["pid"] for name in [*names, "web1"]}
    done = bed.a.vmferry("upgrade", "--all", "--parallel=3", "--json")
    results = {r["vm"]: r for r in map(json.loads, done.stdout.splitlines())}
    assert set(results) == set(before) and all(r["status"] == "completed" for r in results.values())
    for name in before:
        after = bed.a.status(name)
        assert after["qemu_version"].startswith("10.") and after["pid"] != before[name]
        assert after["state"] == ("paused" if name == "web1" else "running")
        home.one_qemu(name)
    home.host.vmferry("resume", "web1")
    restarted = bed.a.vmferry("restart-keeper", "--all").stdout
    assert all(f"{name}: running" in restarted for name in before)
    home.probe.mark()
    home.unharmed()


def test_keeper_restarts_again_and_again(bed, cleanup):
    """Whoever asks while it does waits for the next one."""
    small(bed.a, "again", 23)
    cleanup("again")
    pid = bed.a.status("again")["pid"]
    for _ in range(12):
        assert "again: running" in bed.a.vmferry("restart-keeper", "again").stdout
    assert bed.a.status("again")["pid"] == pid


# ---- it is refused, or fails ----


def failing(host, name, script):
    path = host.dir / name
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    return path


def test_new_one_does_not_start(web1):
    pid = web1.status()["pid"]
    result = web1.upgrade(binary=failing(web1.host, "broken", "echo 'qemu-system-x86_64: no such machine' >&2; exit 1"), status=1)
    assert "no such machine" in result["error"]["message"] and result["guest"] == "running here"
    assert web1.status()["pid"] == pid


def test_new_one_says_nothing(web1):
    """It hangs: the deadline, and the guest has not stopped for a moment."""
    web1.host.write_conf("deadlines {\n prepare = 1\n}\n")
    restart_keeper(web1.host)
    try:
        result = web1.upgrade(binary=failing(web1.host, "hangs", "exec sleep 1000"), status=1)
        assert "did not get ready" in result["error"]["message"]
    finally:
        web1.host.write_conf(CONF)
        restart_keeper(web1.host)


@pytest.mark.parametrize("how, words", [
    ({"binary": "/nonexistent/qemu"}, "no program"),
    ({"definition": ("cpus = 2", "cpus = 1")}, "what the guest sees"),
    ({"definition": ("vda.qcow2", "other.qcow2")}, "not the file that the guest uses"),
    ({"definition": ('bridge = "br0"', 'bridge = "br9"')}, "br9"),
])
def test_refused(web1, how, words):
    host = web1.host
    options = []
    if "definition" in how:
        command("qemu-img", "create", "-q", "-f", "qcow2", str(host.dir / "other.qcow2"), "64M")
        text = (host.config / "vms" / "web1.vm").read_text()
        assert how["definition"][0] in text
        (host.dir / "to.vm").write_text(text.replace(*how["definition"]))
        options = ["--to-definition", host.dir / "to.vm"]
    done = host.vmferry("upgrade", "web1", "--binary", how.get("binary", web1.other()), *options, check=False)
    assert done.returncode in (1, 2) and words in done.stderr, done.stderr


def test_definition_of_its_own(bed, web1):
    """Host paths may change: a disk by another name, a NIC on another bridge."""
    host = web1.host
    link = host.dir / "link.qcow2"
    link.symlink_to(host.dir / "vda.qcow2")
    text = (host.config / "vms" / "web1.vm").read_text()
    (host.dir / "to.vm").write_text(text.replace(str(host.dir / "vda.qcow2"), str(link)))
    web1.upgrade("--to-definition", host.dir / "to.vm")
    assert host.vmferry_json("show", "web1")["disks"][0]["file"] == str(link)


def test_private_memory(bed, cleanup):
    """Only its QEMU has it: copied once, after that it is shared."""
    small(bed.a, "private", 20, memory_backing="private")
    cleanup("private")
    done = bed.a.vmferry("upgrade", "private", "--binary", qemu(), "--way=in-place", check=False)
    assert done.returncode == 1 and "copied" in done.stderr, done.stderr
    done = bed.a.vmferry("upgrade", "private", "--way=sideways", check=False)
    assert done.returncode != 0 and "'sideways' is no way" in done.stderr, done.stderr
    found = bed.a.vmferry_json("upgrade", "private", "--binary", qemu(), "--check")
    assert found["ok"] and found["way"] == "copy" and found["memory_needed"] == (32 + 48) << 20
    assert "private" in found["findings"][0]["what"]
    assert bed.a.vmferry_json("show", "private")["memory_backing"] == "private"
    done = bed.a.vmferry_json("upgrade", "private", "--binary", qemu())
    assert done["status"] == "completed" and done["way"] == "copy" and "private" in done["warnings"][0]
    assert bed.a.vmferry_json("show", "private")["memory_backing"] == "shared"
    restart_keeper(bed.a, "private")
    done = bed.a.vmferry_json("upgrade", "private", "--binary", OLD)
    assert done["way"] == "in place" and done["warnings"] == []


@pytest.mark.parametrize("word, name", [("vfio-0", "VFIO"), ("vhost-user-0", "vhost-user"), ("vhost-vdpa-0", "vDPA"), ("virtiofs-0", "virtiofs")])
def test_device_of_one_qemu(bed, cleanup, word, name):
    """Only qemu-args can bring one in, and a check names it (here the word is but a name that a device has)."""
    small(bed.a, "device", 24, f'qemu-args = {{ "-device", "virtio-rng-pci,id={word}" }}\n')
    cleanup("device")
    done = bed.a.vmferry("upgrade", "device", "--check", "--json", check=False)
    found = json.loads(done.stdout)
    assert done.returncode == 1 and not found["ok"] and found["way"] == "none"
    assert word in found["findings"][0]["what"] and name in found["findings"][0]["what"], found


def test_device_that_does_not_migrate(bed, cleanup):
    """QEMU itself says so: a check names it, nothing is tried."""
    small(bed.a, "nvme", 26, 'qemu-args = { "-device", "nvme,serial=x" }\n', binary=qemu())
    cleanup("nvme")
    done = bed.a.vmferry("upgrade", "nvme", "--check", "--json", check=False)
    found = json.loads(done.stdout)
    assert done.returncode == 1 and found["way"] == "none" and "nvme" in found["findings"][0]["what"], found
    done = bed.a.vmferry("upgrade", "nvme", check=False)
    assert done.returncode == 1 and "non-migratable device" in done.stderr
    assert bed.a.status("nvme")["state"] == "running"


def test_no_room_for_a_copy(bed, cleanup):
    """Refused, with figures. Huge pages are what a host surely lacks."""
    small(bed.a, "large", 22, memory_backing="private", memory="2G")
    cleanup("large")
    pid = bed.a.status("large")["pid"]
    text = (bed.a.config / "vms" / "large.vm").read_text()
    (bed.a.dir / "huge.vm").write_text(text.replace("private", "huge"))
    for option in ([], ["--check"]):
        done = bed.a.vmferry("upgrade", "large", "--to-definition", bed.a.dir / "huge.vm", *option, check=False)
        words = done.stdout + done.stderr
        assert done.returncode == 1 and "2048 MiB wanted" in words and "twice" in words, words
    assert bed.a.status("large")["pid"] == pid


@pytest.fixture
def limited(bed, cleanup):
    """VMs whose keepers are in a control group with a limit: start(number), and room(MiB), which there is then."""
    group = bed.a.dir / "cgroup"
    group.mkdir(exist_ok=True)

    def room(mib):
        (group / "memory.current").write_text(f"{1000 << 20}\n")
        (group / "memory.stat").write_text(f"anon 0\ninactive_file {200 << 20}\n")
        (group / "memory.max").write_text(f"{(800 + mib) << 20}\n")

    def start(number):
        name = f"limited{number}"
        keys = {"kernel": None, "initrd": None, "append": None, "machine": MACHINE, "binary": qemu(), "memory_backing": "private"}
        bed.a.define(name, Guest(number), memory="32M", **keys)
        bed.a.vmferry("start", name, env={"VMFERRY_CGROUP_DIR": str(group)})
        cleanup(name)
        return name

    room(1000)
    yield start, room


def test_no_room_in_the_control_group(bed, limited):
    """Refused, with figures, before anything is begun: 32 MiB once more, and 48 for a QEMU."""
    start, room = limited
    name = start(27)
    room(79)
    for option in ([], ["--check"]):
        done = bed.a.vmferry("upgrade", name, *option, check=False)
        words = done.stdout + done.stderr
        assert done.returncode == 1 and "80 MiB wanted, 79 MiB available" in words and "twice" in words, words
    room(80)
    assert bed.a.vmferry_json("upgrade", name)["status"] == "completed"


def test_room_for_one_at_a_time(bed, limited):
    """Each alone has room: what is promised to one that is under way the others do not have, and wait for it."""
    start, room = limited
    names = [start(number) for number in (27, 28, 29)]
    room(150)
    for options in (["--check"], []):
        done = bed.a.vmferry("upgrade", *names, "--parallel=3", "--way=copy", "--json", *options)
        assert sorted(json.loads(line)["vm"] for line in done.stdout.splitlines()) == names, done.stdout


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
def test_room_that_is_promised(bed, limited):
    """In the middle of one copy another one is refused, and the refusal says why; after it, it is not."""
    start, room = limited
    one, other = start(27), start(28)
    room(150)
    injector, refused = Injector([bed.a]), []
    injector.plan = {(bed.a, "START_UPGRADE", "before"): lambda: refused.append(bed.a.vmferry("upgrade", other, check=False))}
    try:
        bed.a.vmferry("upgrade", one)
    finally:
        injector.close()
    assert refused[0].returncode == 1 and "are promised: limited27 80 MiB" in refused[0].stderr and "try again" in refused[0].stderr, refused
    assert bed.a.vmferry_json("upgrade", other)["status"] == "completed"


def test_copy(bed, web1):
    """The guest writes memory all the while; nothing of that is lost."""
    web1.newer()
    before = memory_file(web1)
    bed.ask(web1.guest, "dirty 20")
    result = web1.upgrade("--way=copy", binary=qemu())
    assert result["status"] == "completed" and result["way"] == "copy" and result["pause_ms"] > 0
    assert memory_file(web1) != before
    bed.ask(web1.guest, "stop")
    assert not bed.ask(web1.guest, "check").endswith(" 0 rewritten")


def test_copy_of_a_guest_that_stands_still(bed, web1):
    """The last resort, asked for by name. A keeper that dies in the middle: the next one lets the guest go on."""
    web1.newer()
    bed.ask(web1.guest, "dirty 20")
    result = web1.upgrade("--way=copy", "--no-live", binary=qemu())
    assert result["status"] == "completed" and result["guest"] == "running here" and result["warnings"] == []
    pid = web1.status()["pid"]
    upgrade = bed.a.popen("vmferry", "upgrade", "web1", "--binary", qemu(), "--way=copy", "--no-live", stdout=subprocess.DEVNULL)
    wait_until(lambda: bed.a.vmferry("set", "web1", "bandwidth=1M", check=False).returncode == 0)
    wait_until(lambda: (web1.status().get("migration") or {}).get("transferred"))
    assert web1.status()["state"] == "paused"
    os.kill(keeper(bed.a, "web1"), signal.SIGKILL)
    upgrade.wait()
    wait_until(lambda: web1.status() and web1.status()["state"] == "running")
    assert web1.status()["pid"] == pid
    bed.ask(web1.guest, "stop")
    assert not bed.ask(web1.guest, "check").endswith(" 0 rewritten")


def test_copy_that_does_not_end(bed, web1):
    """The guest writes faster than it may be copied; a person gives up."""
    web1.newer()
    pid = web1.status()["pid"]
    bed.ask(web1.guest, "dirty 20")
    upgrade = bed.a.popen("vmferry", "upgrade", "web1", "--binary", qemu(), "--way=copy", "--json", stdout=subprocess.PIPE, text=True)
    wait_until(lambda: bed.a.vmferry("set", "web1", "bandwidth=1M", "throttle=0", check=False).returncode == 0)
    progress = wait_until(lambda: (web1.status().get("migration") or {}).get("transferred") and web1.status()["migration"])
    assert progress["state"] == "upgrade-perform" and progress["total"] > 128 << 20
    bed.a.vmferry("cancel", "web1")
    out = upgrade.communicate(timeout=LIMIT)[0]
    result = json.loads(out.splitlines()[-1])
    assert upgrade.returncode == 1 and result["status"] == "cancelled" and result["guest"] == "running here"
    assert web1.status()["pid"] == pid
    bed.ask(web1.guest, "stop")
    assert not bed.ask(web1.guest, "check").endswith(" 0 rewritten")


# ---- saved to a file ----


def saved_files(host):
    return [*host.runtime.glob(".saved/*"), *host.state.glob("web1/saved")]


def test_saved(bed, web1):
    """Newer and older by a file, the guest stands still meanwhile: memory, connections, console are as before. Nothing is left."""
    bed.ask(web1.guest, "dirty 20")
    for options in ([], ["--save-dir", bed.a.dir]):
        before = web1.status()
        result = web1.upgrade("--way=save", *options)
        after = web1.status()
        assert result["status"] == "completed" and result["way"] == "save" and result["guest"] == "running here"
        assert result["from"]["version"] == before["qemu_version"] != after["qemu_version"] == result["to"]["version"]
        assert not os.path.exists(f"/proc/{before['pid']}")
        steps = result["steps"]
        assert set(steps) == {"try", "save", "record", "kill", "start", "load", "cont"} and min(steps.values()) >= 0
        assert 0 < steps["save"] + steps["load"] < result["pause_ms"] < result["total_ms"]
        assert 48 << 20 < result["file"]["size"] < 260 << 20 and not result["file"]["kept"]
        assert os.path.dirname(result["file"]["path"]) == str(options[1] if options else bed.a.runtime / ".saved")
        assert not os.path.exists(result["file"]["path"]) and saved_files(bed.a) == []
    bed.ask(web1.guest, "stop")
    assert not bed.ask(web1.guest, "check").endswith(" 0 rewritten")


def test_saved_new_one_cannot_load(bed, web1):
    """It starts when it is tried, and then it is another machine: the old version goes on, and the result says so."""
    before = web1.status()
    result = web1.upgrade("--way=save", status=1, binary=once(bed.a, "other-machine", web1.other(), before="pc-q35-7.2,", after="pc-q35-7.1,"))
    after = web1.status()
    assert result["status"] == "failed" and result["guest"] == "running here" and not result["file"]["kept"]
    assert "load of migration failed" in result["error"]["message"] and [w for w in result["warnings"] if "the old one goes on" in w], result
    assert after["qemu_version"] == before["qemu_version"] and after["pid"] != before["pid"] and saved_files(bed.a) == []


def once(host, name, binary, before="-S", after="-no-such-option"):
    """A QEMU that is as it should be when it starts first, and later with @after for @before in its command line."""
    tried = host.dir / f"{name}.tried"
    shutil.rmtree(tried, ignore_errors=True)
    tried.mkdir(mode=0o777)
    tried.chmod(0o777)
    change = f'for a; do shift; case "$a" in "{before}"*) a="{after}${{a#{before}}}";; esac; set -- "$@" "$a"; done'
    return failing(host, name, f"mkdir {tried}/once 2>/dev/null || {change}\nexec {binary} \"$@\"\n")


def test_saved_private_memory(bed, cleanup):
    """It stays what it is; a guest that is paused stays paused, a lease this host's. Refused where there is no room."""
    with small_tmpfs(bed.a) as tiny:  # the keeper has a copy of what is mounted when it starts
        small(bed.a, "private", 27, section("lease file", path=str(bed.dir / "private.lease")), memory_backing="private")
    cleanup("private")
    found = bed.a.vmferry_json("upgrade", "private", "--binary", qemu(), "--way=save", "--check")
    assert found["ok"] and found["way"] == "save" and found["memory_needed"] > (32 + 48) << 20
    assert not (bed.a.state / "private" / "saved").exists()
    for way, words in (("copy", "is for --way=save"), ("save", "absolute path")):
        done = bed.a.vmferry("upgrade", "private", f"--way={way}", "--save-dir=here", check=False)
        assert done.returncode != 0 and words in done.stderr, done.stderr
    for option in ([], ["--check"]):
        done = bed.a.vmferry("upgrade", "private", "--way=save", f"--save-dir={tiny}", *option, check=False)
        words = done.stdout + done.stderr
        assert done.returncode == 1 and "may take 96 MiB" in words and f"{tiny} has 8 MiB" in words, words
    done = bed.a.vmferry_json("upgrade", "private", "--binary", qemu(), "--way=save")
    assert done["status"] == "completed" and done["warnings"] == []
    assert bed.a.vmferry_json("show", "private")["memory_backing"] == "private"
    assert bed.a.status("private")["lease"]["held"]
    bed.a.vmferry("pause", "private")
    done = bed.a.vmferry_json("upgrade", "private", "--binary", OLD, "--way=save")
    assert done["status"] == "completed" and done["guest"] == "paused" and "pause_ms" not in done
    assert bed.a.status("private")["state"] == "paused" and not bed.a.status("private")["lease"]["held"]
    bed.a.vmferry("resume", "private")
    assert bed.a.status("private")["lease"]["held"]


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
def test_saved_to_storage_that_does_not_answer(bed, cleanup):
    """The sync of the file does not end: the keeper answers, a cancel brings the guest back at once, and the file goes when it can."""
    host, silent, storage = bed.a, bed.a.config / "silent", Storage(bed.a.dir, 160 << 20)
    command = ("vmferry", "upgrade", "silent", "--binary", qemu(), "--way=save", "--save-dir", storage.dir, "--json")
    with contextlib.ExitStack() as stack:
        stack.callback(storage.close)
        stack.callback(silent.unlink, missing_ok=True)
        small(host, "silent", 29)
        cleanup("silent")
        before = qemus(host, "silent")
        silent.write_text("the saved state's storage")
        upgrade = host.popen(*command, stdout=subprocess.PIPE)
        wait_until(lambda: (host.status("silent").get("migration") or {}).get("state") == "upgrade-sync")
        assert host.status("silent")["state"] == "paused"
        storage.freeze(True)
        host.vmferry("cancel", "silent")
        result = json.loads(upgrade.communicate(timeout=LIMIT)[0].splitlines()[-1])
        assert result["status"] == "cancelled" and result["guest"] == "running here" and not result["file"]["kept"], result
        wait_until(lambda: host.status("silent")["state"] == "running")
        assert qemus(host, "silent") == before and os.path.exists(result["file"]["path"])
        refused = host.vmferry(*command[1:], check=False)
        assert refused.returncode == 1 and "is not removed yet" in refused.stdout + refused.stderr, refused
        storage.freeze(False)
        wait_until(lambda: not (host.state / "silent" / "saved").exists())
        assert not os.path.exists(result["file"]["path"]) and qemus(host, "silent") == before
        silent.unlink()
        assert json.loads(host.vmferry(*command[1:]).stdout.splitlines()[-1])["status"] == "completed"
        assert list(storage.dir.glob("*.saved")) == []


@contextlib.contextmanager
def small_tmpfs(host):
    path = host.dir / "tiny"
    path.mkdir()
    command("mount", "-t", "tmpfs", "-o", "size=8M", "vmferry-test", str(path))
    try:
        yield path
    finally:
        command("umount", str(path))


def test_saved_and_nobody_takes_it(bed, cleanup):
    """Neither version loads the file: it is kept, and whoever starts the VM later goes on with the guest; or without, if it is gone."""
    old, fresh = once(bed.a, "old", OLD), once(bed.a, "fresh", qemu())
    small(bed.a, "kept", 28, binary=str(old))
    cleanup("kept")
    elsewhere = bed.a.dir / "elsewhere"
    elsewhere.mkdir()
    for removed in (False, True):
        option = [] if removed else ["--save-dir", elsewhere]
        done = bed.a.vmferry("upgrade", "kept", "--binary", str(fresh), "--way=save", *option, "--json", check=False)
        result = json.loads(done.stdout.strip().split("\n")[-1])
        path = result["file"]["path"]
        assert done.returncode == 1 and result["guest"] == "saved to a file" and result["file"]["kept"], result
        assert path in result["error"]["hint"] and "vmferry start kept" in result["error"]["hint"]
        assert os.path.getsize(path) == result["file"]["size"]
        wait_until(lambda: not qemus(bed.a, "kept") and not (bed.a.runtime / "kept").exists())
        assert bed.a.status("kept")["state"] == "off"
        done = bed.a.vmferry("start", "kept", check=False)  # nothing has changed
        assert done.returncode == 1 and path in done.stderr, done.stdout + done.stderr
        wait_until(lambda: not (bed.a.runtime / "kept").exists())
        (bed.a.dir / "old.tried" / "once").rmdir()
        if removed:
            os.unlink(path)
        else:  # its file system is not mounted
            elsewhere.rename(bed.a.dir / "hidden")
            done = bed.a.vmferry("start", "kept", check=False)
            assert done.returncode == 1 and path in done.stderr and "mount" in done.stderr, done.stderr
            (bed.a.dir / "hidden").rename(elsewhere)
            wait_until(lambda: not (bed.a.runtime / "kept").exists())
        bed.a.vmferry("start", "kept")
        status = bed.a.status("kept")
        assert status["state"] == "running" and status["qemu_version"].startswith("7.2")
        assert ("last_result" in status) == (not removed)  # the old version has taken it
        assert not os.path.exists(path) and not (bed.a.state / "kept" / "saved").exists()
        if not removed:
            (bed.a.dir / "fresh.tried" / "once").rmdir()


# ---- keepers, QEMUs and hosts that die ----


def restart_keeper(host, name="web1"):
    host.vmferry("restart-keeper", name)


FORWARD = "NOTE_UPGRADE START_NEW SET_UP_BOTH START_UPGRADE COMMIT_NEW KILL_OLD CONT_NEW ANNOUNCE END".split()
BACK = "KILL_NEW CLEAR_NEW SETTLE END".split()
COMMITTED = FORWARD.index("KILL_OLD")


def points():
    for action in FORWARD:
        for when in ("before", "after"):
            for victim in ("self", "old", "new", "cancel"):
                yield f"{action}:{when}:{victim}"
            if action in FORWARD[:4]:  # later the button may be pressed on a QEMU that is killed before it says so
                yield f"{action}:{when}:powerdown"


def back_points():
    """A cancel at the last moment, when the old one is in postmigrate; then the keeper dies on the way back."""
    for action in [*BACK[:3], "CONT_BACK", "END"]:
        for when in ("before", "after"):
            for victim in ("self", "old"):
                yield f"COMMIT_NEW:before:cancel\n{action}:{when}:{victim}"


ALL = [*points(), *back_points()]
COPIES = [f"{action}:{when}:{victim}" for action in FORWARD[2:7] for when in ("before", "after") for victim in ("self", "old", "new", "cancel")]
COPIES_SAMPLE = "START_UPGRADE:after:self START_UPGRADE:after:new START_UPGRADE:after:cancel COMMIT_NEW:before:new COMMIT_NEW:after:self".split()
SAMPLE = [p for p in ALL if p.endswith((":after:self", "START_UPGRADE:after:new", "CONT_BACK:before:self"))]
SAMPLE = [p for p in SAMPLE if "\n" not in p or "CLEAR_NEW" in p or "CONT_BACK:before" in p]


def strikes_new(action, when, victim):
    """Whether the fault ends the QEMU that has, or is about to have, the guest."""
    at = FORWARD.index(action)
    if victim == "old":
        return at < COMMITTED or (at == COMMITTED and when == "before")
    return victim == "new" and at >= COMMITTED - 1  # SIGKILLed, but not yet seen dead


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
@pytest.mark.parametrize("point", [p if p in SAMPLE else pytest.param(p, marks=pytest.mark.long) for p in ALL])
def test_fault(home, point):
    strike(home, point, home.other())


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
@pytest.mark.parametrize("point", [p if p in COPIES_SAMPLE else pytest.param(p, marks=pytest.mark.long) for p in COPIES])
def test_fault_of_a_copy(home, point):
    home.newer()
    strike(home, point, qemu(), "--way=copy")


SAVING = "NOTE_UPGRADE START_NEW SET_UP_BOTH KILL_NEW START_SAVE SYNC_FILE COMMIT_SAVE KILL_SAVED START_FILL LOAD_FILE USE_UP CONT_NEW ANNOUNCE END".split()
SAVES = [f"{action}:{when}:{victim}" for action in SAVING for when in ("before", "after") for victim in ("self", "old", "new", "cancel")]
SAVES.remove("SYNC_FILE:after:old")  # its end, or that of the sync, comes first
# On the way back, to the old version, and to its end.
SAVES += [f"COMMIT_SAVE:before:cancel\n{action}:{when}:self" for action in [*BACK[:3], "CONT_BACK", "END"] for when in ("before", "after")]
SAVES += [f"LOAD_FILE:after:new\n{action}:{when}:self" for action in "FALL_BACK START_FILL LOAD_FILE USE_UP CONT_NEW".split() for when in ("before", "after")]
SAVES_SAMPLE = ["START_SAVE:after:cancel", "USE_UP:after:self"]


def strikes_the_only_one(action, victim):
    """Whether the fault ends the QEMU that has the guest; in between, the file has it."""
    at = SAVING.index(action)
    if victim == "old":
        return at < SAVING.index("COMMIT_SAVE")
    return victim == "new" and at >= SAVING.index("USE_UP")  # SIGKILLed, but not yet seen dead, when the record says that it has it


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
@pytest.mark.parametrize("point", [p if p in SAVES_SAMPLE else pytest.param(p, marks=pytest.mark.long) for p in SAVES])
def test_fault_while_saved(home, point):
    lost = "\n" not in point and strikes_the_only_one(*point.split(":")[::2])
    strike(home, point, home.other(), "--way=save", lost=lost)


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
@pytest.mark.parametrize("kept", [True, pytest.param(False, marks=pytest.mark.long)])
def test_reboot_while_saved(bed, home, kept):
    """The power fails while a file has the guest. If it is on a disk, the guest goes on from it; else the VM is off."""
    home.probe.mark()
    power_cut(bed, home, "KILL_SAVED:after", "--way=save")
    [path] = bed.a.runtime.glob(".saved/*")
    if not kept:
        shutil.rmtree(bed.a.runtime / ".saved")
        home.boot_again()
        return
    bed.a.vmferry("start", "web1")
    home.unharmed()


def strike(home, point, binary, *options, lost=None):
    """An upgrade with a fault: the guest goes on, but for one whose own QEMU was struck."""
    first, _, second = point.partition("\n")
    action, when, victim = (second or first).split(":")
    if lost is None:
        lost = victim == "powerdown" or (strikes_new(action, when, victim) if not second else victim == "old")
    home.probe.mark()
    before = home.status()
    (home.host.runtime / "fault").write_text(point + "\n")
    done = home.host.vmferry("upgrade", "web1", "--binary", binary, "--json", *options, check=False)
    struck = not (home.host.runtime / "fault").exists()
    (home.host.runtime / "fault").unlink(missing_ok=True)
    assert struck, f"the point was never reached: {done.stdout} {done.stderr}"

    def settled():
        s = home.status()
        if not s or not s.get("pid"):
            return not (home.host.runtime / "web1").exists()
        return s["state"] in ("running", "paused") and not s.get("migration") and len(qemus(home.host, "web1")) == 1

    wait_until(settled)
    if victim == "powerdown":  # the guest takes its time; in which QEMU, is the same to it
        wait_until(lambda: not running(home), limit=LIMIT)
    if lost and not running(home):
        home.boot_again()
        return
    after = home.status()
    assert after and after["state"] == "running", (after, done.stdout, done.stderr)
    if done.returncode == 0:
        assert after["pid"] != before["pid"]
    if done.returncode == 0 and not options:
        assert after["qemu_version"] != before["qemu_version"]
    home.unharmed()


UNASKED = [f"{action}:{victims}" for action in ("START_UPGRADE:after", "COMMIT_NEW:before", "COMMIT_NEW:after") for victims in ("old", "new", "old new")]


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
@pytest.mark.parametrize("point", [p if p in ("COMMIT_NEW:after:old", "COMMIT_NEW:after:new") else pytest.param(p, marks=pytest.mark.long) for p in UNASKED])
def test_qemu_dies_while_its_keeper_returns(bed, home, point):
    """The next keeper has found both, and one dies before it is asked how the guest is: as if only the other had been there."""
    action, when, victims = point.split(":")
    host, log = bed.a, bed.a.state / "web1" / "log"
    old = home.status()["pid"]
    injector = Injector([host])

    def strike():
        pids, found = qemus(host, "web1"), log.read_text().count("found QEMU alive")
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        os.kill(keeper(host, "web1"), signal.SIGKILL)
        wait_until(lambda: log.read_text().count("found QEMU alive") > found)
        kill([pid for pid in pids if ("old" if pid == old else "new") in victims])
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    injector.plan = {(host, action, when): strike}
    home.probe.mark()
    try:
        host.vmferry("upgrade", "web1", "--binary", home.other(), check=False)
        assert injector.wait(lambda: injector.struck)
    finally:
        injector.close()
    if victims == "old new" or victims == "old" and point != "COMMIT_NEW:after:old":
        home.boot_again()
        return
    wait_until(lambda: (home.status() or {}).get("state") == "running" and not home.status().get("migration"))
    assert (home.status()["pid"] == old) == (victims == "new")
    home.unharmed()


STILL_ASKED = ["ASK_NEW:before", "START_NEW:after", "SET_UP_BOTH:before", "SHARE_LEASE:before", "START_UPGRADE:before", "START_UPGRADE:after"]
NO_WAY_BACK = ["CONT_NEW:before", "COMMIT_NEW:before", "COMMIT_NEW:after", "KILL_OLD:before", "KILL_OLD:after"]
HANGS = [*zip(STILL_ASKED, NO_WAY_BACK)] + [(STILL_ASKED[-1], None)]


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
@pytest.mark.parametrize("before, after", [HANGS[0], *(pytest.param(*p, marks=pytest.mark.long) for p in HANGS[1:])])
def test_new_one_hangs(bed, before, after):
    """As long as it has to answer once more, the guest goes on in the old one. Later a person is told, and it goes on when the new one does."""
    olds, upgrades, injector = {}, {}, Injector(bed.hosts)

    def new_one(host):
        return wait_until(lambda: [p for p in qemus(host, "hangs") if p != olds[host]])[0]

    def upgrade(host, number, point):
        host.write_conf("deadlines {\n connect = 60\n prepare = 10\n link = 60\n switchover = 4\n}\n")
        small(host, "hangs", number)
        host.write_conf(CONF)
        [olds[host]] = qemus(host, "hangs")
        injector.plan[host, *point.split(":")] = lambda: os.kill(new_one(host), signal.SIGSTOP)
        upgrades[host] = host.popen("vmferry", "upgrade", "hangs", "--binary", qemu(), "--json", stdout=subprocess.PIPE)

    def result(host):
        out = upgrades[host].communicate(timeout=LIMIT)[0]
        return upgrades[host].returncode, json.loads(out.splitlines()[-1])

    try:
        upgrade(bed.a, 45, before)
        if after:
            upgrade(bed.b, 46, after)
        status, told = result(bed.a)
        assert (status, told["status"], told["guest"]) == (1, "failed", "running here"), told
        assert "within" in told["error"]["message"], told
        wait_until(lambda: qemus(bed.a, "hangs") == [olds[bed.a]])
        assert bed.a.status("hangs")["state"] == "running"
        if after:
            status, told = result(bed.b)
            assert (status, told["status"], told["guest"]) == (3, "in-doubt", "paused"), told
            assert "does not answer" in told["warnings"][-1], told
            now = bed.b.status("hangs")
            assert (now["state"], now["reason"], now["pid"]) == ("paused", "QEMU does not answer", new_one(bed.b))
            os.kill(now["pid"], signal.SIGCONT)
            wait_until(lambda: bed.b.status("hangs")["state"] == "running" and not bed.b.status("hangs").get("migration"))
            assert qemus(bed.b, "hangs") == [now["pid"]]
    finally:
        injector.close()
        for host in upgrades:
            kill(qemus(host, "hangs"))
            assert host.wait_clean("hangs") == []


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
def test_guest_that_ends_unheard(bed, home):
    """It shuts down when both QEMUs are there, and no keeper hears of it: the next one finds a QEMU without a guest, and ends both."""
    injector = Injector([bed.a])
    injector.plan = {(bed.a, "START_UPGRADE", "before"): lambda: shut_down_unheard(bed, bed.a, home.guest)}
    try:
        done = bed.a.vmferry("upgrade", "web1", "--binary", home.other(), check=False)
        assert injector.wait(lambda: injector.struck), "the guest does not shut down"  # the client may be back before
        assert done.returncode != 0, done.stdout + done.stderr
    finally:
        injector.close()
    home.boot_again()


@pytest.mark.skipif(not build_option("faults"), reason="needs -Dfaults=true")
def test_record_of_a_former_upgrade(home):
    """A record that could not be written back names the generation that the next upgrade takes: it must not count for that one."""
    path = home.host.runtime / "web1" / "state"
    state = json.loads(path.read_text())
    state["generation"] += 1
    path.write_text(json.dumps(state))
    strike(home, "START_UPGRADE:before:self", home.other())


def power_cut(bed, home, point, *options):
    (bed.a.runtime / "fault").write_text(point + ":reboot\n")
    mover = bed.a.popen("vmferry", "upgrade", "web1", "--binary", home.other(), *options, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: not (bed.a.runtime / "fault").exists())
    mover.kill()
    wait_until(lambda: mover.poll() is not None)
    kill(parents(bed.a) + keepers(bed.a) + qemus(bed.a, "web1"))  # the parent first, so that no keeper comes back
    shutil.rmtree(bed.a.runtime / "web1")


def running(home):
    return (home.status() or {}).get("pid")
