# SPDX-License-Identifier: GPL-2.0-or-later
"""src/qemu/ with a real QEMU (TCG, -S, no guest), in a network namespace of its own. Needs root.

VMFERRY_BUILD: build directory (tests/host/qemu-tool in it).
VMFERRY_TEST_QEMU: QEMU programs, separated by colons; one under a prefix finds its firmware and modules there.
"""
import ctypes
import errno
import json
import os
import pathlib
import random
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest

BUILD = pathlib.Path(os.environ.get("VMFERRY_BUILD", "build"))
TOOL = BUILD / "tests/host/qemu-tool"
QEMUS = os.environ.get("VMFERRY_TEST_QEMU", "/usr/bin/qemu-system-x86_64").split(":")
MACS = ["52:54:00:12:34:56", "52:54:00:12:34:57"]
LIMIT = 60

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not TOOL.exists(), reason=f"no {TOOL}"),
]


def run(*words, check=True):
    return subprocess.run(words, check=check, stdout=subprocess.PIPE, text=True, timeout=LIMIT).stdout


def until(what, limit=LIMIT):
    """Waits for a state that nobody announces (a process's exit, the kernel's removal of a link)."""
    end = time.monotonic() + limit
    while not what():
        assert time.monotonic() < end, "waited too long"
        select.select([], [], [], 0.005)


def gone(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def set_fd_limit(soft):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


class Host:
    """A namespace with bridge br0, a directory, and the tool in both."""

    def __init__(self, tmp, qemu):
        self.tmp, self.qemu, self.pids, self.tools = tmp, qemu, set(), []
        self.ns = f"vmferry-q{os.getpid()}"

    def make(self):
        run("ip", "netns", "add", self.ns)
        for line in ("link set lo up", "link add br0 mtu 1400 type bridge", "link set br0 up",
                     "link add out0 mtu 1400 type veth peer name out1", "link set out0 master br0 up", "link set out1 up",
                     "addr add 10.9.0.1/24 dev br0", "addr add fd09::1/64 dev br0 nodad"):
            self.ip(*line.split())
        # Kernels may lack CONFIG_BRIDGE_VLAN_FILTERING.
        self.ip("link", "set", "br0", "type", "bridge", "vlan_filtering", "1", check=False)
        self.vlan = 7 if link(self, "br0")["linkinfo"]["info_data"]["vlan_filtering"] else 0
        self.disk = self.tmp / "disk.raw"
        with open(self.disk, "wb") as f:
            f.truncate(16 << 20)

    def ip(self, *words, check=True):
        return run("ip", "-n", self.ns, *words, check=check)

    def bridge(self, *words):
        return run("bridge", "-n", self.ns, *words)

    def definition(self, name="vm", memory="shared", **change):
        prefix, _, rest = self.qemu.partition("/usr/bin/")
        data = [f"{prefix}/usr/share/qemu", "/usr/share/seabios", "/usr/lib/ipxe/qemu"]
        args = ", ".join(f'"-L", "{d}"' for d in data) if prefix else ""
        values = {"cpu": '"qemu64"', "accel": '"tcg"', "binary": f'"{self.qemu}"', "file": f'"{self.disk}"',
                  "bridge": '"br0"', "extra": "", "cache": '"none"', "machine": '"q35"', "vlan": self.vlan} | change
        path = self.tmp / f"{name}.vm"
        path.write_text("""
machine = {machine}
cpu = {cpu}
cpus = 1
memory = "256M"
memory-backing = "%s"
accel = {accel}
binary = {binary}
disk vda {{ file = {file} format = "raw" cache = {cache} }}
nic net0 {{ bridge = {bridge} model = "virtio-net-pci" mac = "%s" addresses = {{ "10.0.0.5", "fd00::5" }} }}
nic net1 {{ bridge = {bridge} vlan = {vlan} model = "virtio-net-pci" mac = "%s" }}
qemu-args = {{ %s }}
{extra}
""".format(**values) % (memory, *MACS, args))
        return path

    def popen(self, *words, limits=None):
        environment = dict(os.environ)
        prefix = self.qemu.partition("/usr/bin/")[0]
        if prefix:
            environment["QEMU_MODULE_DIR"] = f"{prefix}/usr/lib/x86_64-linux-gnu/qemu"
        tool = subprocess.Popen(["ip", "netns", "exec", self.ns, TOOL, *map(str, words)], stdout=subprocess.PIPE,
                                text=True, env=environment, preexec_fn=limits and (lambda: set_fd_limit(limits)))
        self.tools.append(tool)
        return tool

    def tool(self, *words):
        out, _ = self.popen(*words).communicate(timeout=LIMIT)
        lines = [json.loads(line) for line in out.splitlines()]
        return lines if words[0] == "qmp" else lines[0] if lines else {}

    def start(self, directory, definition, *incoming, user="nobody"):
        """Return: what the tool said, and the tool (which is QEMU's parent)."""
        tool = self.popen("start", directory, definition, user, *incoming)
        said = json.loads(tool.stdout.readline())
        if "pid" in said:
            self.pids.add(said["pid"])
        return said, tool

    def qmp(self, directory, *words):
        return self.tool("qmp", directory, *words)

    def taps(self):
        return re.findall(r"^(vf\d+)\b", self.ip("-br", "link"), re.M)

    def close(self):
        for pid in self.pids:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)
        for tool in self.tools:
            tool.kill()
            tool.wait()
            tool.stdout.close()
        run("ip", "netns", "del", self.ns)


@pytest.fixture(params=QEMUS)
def host(request, tmp_path):
    if not os.path.exists(request.param):
        pytest.skip(f"no {request.param}")
    os.chmod(tmp_path, 0o755)
    h = Host(tmp_path, request.param)
    try:
        h.make()
        yield h
    finally:
        h.close()


@pytest.fixture
def vm(host):
    """A started QEMU whose starter was killed: (host, directory, definition, pid)."""
    directory, definition = host.tmp / "run/vm/qemu.1", host.definition()
    said, tool = host.start(directory, definition)
    assert "pid" in said, said
    tool.kill()
    tool.wait()
    return host, directory, definition, said["pid"]


def test_life(vm):
    host, directory, _, pid = vm
    status, = host.qmp(directory, "query-status")
    assert status["return"]["status"] == "prelaunch"
    assert host.tool("adopt", directory) == {"pid": pid}
    assert len(host.taps()) == 2
    assert (directory.stat().st_mode & 0o777, directory.parent.stat().st_mode & 0o777) == (0o711, 0o711)
    assert (directory / "qmp").stat().st_mode & 0o777 == 0o600
    # A client that comes while nobody looks is served, and one more after it.
    assert [r["return"] for r in host.qmp(directory, "query-name", "query-uuid")][0]["name"] == "test"
    host.tool("kill", directory)
    until(lambda: gone(pid))
    until(lambda: host.tool("adopt", directory).get("error") == "ESRCH")
    until(lambda: not host.taps())


def test_unprivileged(vm):
    host, directory, _, pid = vm
    host.qmp(directory, "query-status")
    status = dict(line.split(":\t", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
                  if ":\t" in line)
    nobody = "65534"
    assert status["Uid"].split() == [nobody] * 4
    assert status["Gid"].split() == [nobody] * 4
    assert status["Groups"].split() in ([], [str(os.stat("/dev/kvm").st_gid)] if os.path.exists("/dev/kvm") else [])
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"] == "1"
    assert status["Umask"] == "0077"
    limits = pathlib.Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"^Max core file size\s+0\s+0\s", limits, re.M)
    assert os.getsid(pid) == pid
    assert pathlib.Path(f"/proc/{pid}/oom_score_adj").read_text() == "0\n"
    links = {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    assert links[0] == links[1] == "/dev/null"
    assert links[2] == str(directory / "stderr")
    assert links[5].endswith(" (deleted)")  # guest memory: a file without a name
    assert links[6] == str(directory / "lock")
    assert links[16] == links[17] == "/dev/net/tun"
    # -add-fd makes copies and closes the number it was given.
    disks = [fd for fd, name in links.items() if name.endswith("/disk.raw")]
    assert disks
    for fd in disks:
        info = pathlib.Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
        flags = int(re.search(r"^flags:\s+(\d+)", info, re.M)[1], 8)
        assert flags & os.O_DIRECT and flags & os.O_ACCMODE == os.O_RDWR
    assert not [link for fd, link in links.items() if "pipe:" in link or "qemu-tool" in link]


def test_memory(vm):
    host, directory, _, _ = vm
    # The reset vector's BIOS copy is ROM; RAM is all ours: what we read is what QEMU's monitor reads.
    said = host.tool("memory", directory, 0x100000)
    assert said["size"] == 256 << 20
    shown = host.qmp(directory, 'human-monitor-command={"command-line": "xp /1gx 0x100000"}')[0]["return"]
    assert int(shown.split()[-1], 16) == said["word"]


def test_private_memory(host):
    directory = host.tmp / "run/vm/qemu.1"
    said, _ = host.start(directory, host.definition(memory="private"))
    assert "pid" in said
    assert host.qmp(directory, "query-status")[0]["return"]
    assert host.tool("memory", directory, 0)["error"] == "ENOENT"


def test_huge_memory_is_refused_early(host):
    if int(re.search(r"^HugePages_Free:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text(), re.M)[1]) >= 128:
        pytest.skip("this host has huge pages")
    said, _ = host.start(host.tmp / "run/vm/qemu.1", host.definition(memory="huge"))
    assert "128" in said["message"] and "nr_hugepages" in said["hint"]


@pytest.mark.parametrize("limit", [256, 1024])
def test_many_devices(host, limit):
    """Every cache mode, read-only too, and more fds than a soft limit of open files leaves room for."""
    modes = ["none", "directsync", "writeback", "writethrough", "unsafe"]
    extra = ""
    for i, mode in enumerate(modes):
        for readonly in ("false", "true"):
            file = host.tmp / f"{mode}-{readonly}.raw"
            with open(file, "wb") as f:
                f.truncate(1 << 20)
            extra += f'disk d{i}{readonly} {{ file = "{file}" format = "raw" cache = "{mode}" readonly = {readonly} '
            extra += f'bus = "{"scsi" if i % 2 else "virtio"}" }}\n'
    for i in range(2, 14):
        extra += f'nic net{i} {{ bridge = "br0" model = "virtio-net-pci" mac = "52:54:00:00:00:{i:02x}" }}\n'
    directory = host.tmp / "run/vm/qemu.1"
    tool = host.popen("start", directory, host.definition(extra=extra), "nobody", limits=limit)
    said = json.loads(tool.stdout.readline())
    assert "pid" in said, said
    host.pids.add(said["pid"])
    blocks, = host.qmp(directory, "query-block")
    assert "return" in blocks, host.tool("last-words", directory)
    assert len([b for b in blocks["return"] if b["inserted"]["ro"]]) == 5
    assert len(blocks["return"]) == 11
    assert len(host.taps()) == 14


def test_silent_taps(vm):
    """The host says nothing on the guest's cable by itself."""
    host, directory, _, _ = vm
    host.qmp(directory, "query-status")
    for tap in host.taps():
        said = json.loads(host.ip("-j", "-s", "link", "show", tap))[0]
        assert said["stats64"]["tx"]["packets"] == 0 and "UP" in said["flags"]


def test_one_at_a_time(vm):
    host, directory, definition, pid = vm
    said, _ = host.start(directory, definition)
    assert said["error"] == "EBUSY"
    assert host.tool("adopt", directory) == {"pid": pid}
    assert host.qmp(directory, "query-status")[0]["return"]
    assert len(host.taps()) == 2


@pytest.mark.parametrize("change, user, error, word", [
    ({}, "vmferry-no-such-user", "ENOENT", "vmferry-no-such-user"),
    ({"binary": '"/nonexistent/qemu"'}, "nobody", "ENOENT", "/nonexistent/qemu"),
    ({"file": '"/nonexistent/disk"'}, "nobody", "ENOENT", "disk vda"),
    ({"file": '"/dev/null"', "cache": '"writeback"'}, "nobody", "EINVAL", "neither a file nor a block device"),
])
def test_start_fails(host, change, user, error, word):
    directory = host.tmp / "run/vm/qemu.1"
    said, _ = host.start(directory, host.definition(**change), user=user)
    assert said["error"] == error and word in said["message"]
    assert not directory.exists()
    assert not host.taps()


def test_last_words(host):
    directory = host.tmp / "run/vm/qemu.1"
    said, _ = host.start(directory, host.definition(cpu='"no-such-cpu"'))
    until(lambda: gone(said["pid"]))
    assert "no-such-cpu" in host.tool("last-words", directory)["words"]
    until(lambda: host.tool("adopt", directory)["error"] == "ESRCH")
    # The same directory serves again; what the last one said is gone.
    said, _ = host.start(directory, host.definition())
    assert host.tool("adopt", directory) == {"pid": said["pid"]}
    assert host.tool("last-words", directory)["words"] == ""


def test_disk_is_locked(vm):
    host, directory, definition, _ = vm
    host.qmp(directory, "query-status")
    second = host.tmp / "run/vm/qemu.2"
    said, _ = host.start(second, definition)
    until(lambda: gone(said["pid"]))
    words = host.tool("last-words", second)["words"]
    assert words.endswith('Failed to get "write" lock Is another process using the image [/dev/fdset/0]?'), words


def test_adopt_refuses(vm):
    host, directory, _, pid = vm
    record = (directory / "pid").read_text()
    words = record.split()
    stale = [f"{os.getpid()} {words[1]} {words[2]}\n", f"{pid} {int(words[1]) + 1} {words[2]}\n", record[:-1], "",
             f"{pid} {words[1]} 00000000-0000-0000-0000-000000000000\n", f"-{record}", "x" * 300]
    for text in stale:
        (directory / "pid").write_text(text)
        assert host.tool("adopt", directory)["error"] == "EAGAIN", text
    (directory / "pid").write_text(record)
    assert host.tool("adopt", directory) == {"pid": pid}
    assert host.tool("adopt", host.tmp / "nowhere")["error"] == "ESRCH"
    # Held by one who is no QEMU; its record (ours) is that of a living process.
    other = host.tmp / "run/vm/qemu.2"
    other.mkdir()
    (other / "pid").write_text(record)
    holder = host.popen("hold-lock", other)
    holder.stdout.readline()
    assert host.tool("adopt", other)["error"] == "EAGAIN"


def test_starter_killed_at_any_time(host):
    """Whenever the starter goes: either there is no QEMU, or it can be found."""
    definition = host.definition()
    for i in range(12):
        directory = host.tmp / f"run/vm/qemu.{i}"
        tool = host.popen("start", directory, definition, "nobody")
        select.select([tool.stdout], [], [], random.uniform(0.002, 0.03))
        tool.kill()
        tool.wait()
        said = {"error": "EAGAIN"}

        def settled():
            nonlocal said
            said = host.tool("adopt", directory)
            return said.get("error") != "EAGAIN"
        until(settled)
        if "pid" not in said:
            assert said["error"] == "ESRCH"
            continue
        host.pids.add(said["pid"])
        status, = host.qmp(directory, "query-status")
        assert "return" in status, (status, host.tool("last-words", directory))
        host.tool("kill", directory)
        until(lambda: host.tool("adopt", directory).get("error") == "ESRCH")
    until(lambda: not host.taps())


def fdb(host, mac):
    return [e for e in json.loads(host.bridge("-j", "-s", "fdb", "show", "br", "br0")) if e["mac"] == mac]


def vlans(host, tap):
    return [(v["vlan"], sorted(v.get("flags", [])))
            for e in json.loads(host.bridge("-j", "vlan", "show", "dev", tap)) for v in e["vlans"]]


def link(host, name):
    return json.loads(host.ip("-j", "-d", "link", "show", name))[0]


def test_attach(vm):
    host, directory, definition, _ = vm
    taps = [host.tool("attach", directory, i, definition)["tap"] for i in range(2)]
    assert sorted(taps) == sorted(host.taps())
    for tap in taps:
        said = link(host, tap)
        assert said["master"] == "br0" and said["mtu"] == 1400 and "UP" in said["flags"]
        assert said["linkinfo"]["info_slave_data"]["state"] == "forwarding"
        assert said["inet6_addr_gen_mode"] == "none"
        assert host.ip("-6", "addr", "show", tap).strip() == ""
    assert [e for e in fdb(host, MACS[0]) if e["ifname"] == taps[0]]
    assert {(e["ifname"], e.get("vlan", 0)) for e in fdb(host, MACS[1])} == {(taps[1], host.vlan)}
    assert all(e["state"] == "" for mac in MACS for e in fdb(host, mac)), "permanent or static"
    if host.vlan:
        assert vlans(host, taps[0]) == [(1, ["Egress Untagged", "PVID"])]
        assert vlans(host, taps[1]) == [(7, ["Egress Untagged", "PVID"])]
    # Once more is fine: a keeper that comes back need not know.
    assert host.tool("attach", directory, 0, definition)["tap"] == taps[0]


def in_namespace(name, call):
    """Calls in a thread that lives in the namespace."""
    result = []

    def thread():
        with open(f"/run/netns/{name}") as ns:
            assert ctypes.CDLL(None, use_errno=True).setns(ns.fileno(), 0x40000000) == 0
        result.append(call())
    t = threading.Thread(target=thread)
    t.start()
    t.join()
    return result[0]


def packet_socket(host, device):
    def make():
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        s.bind((device, 0))
        s.settimeout(LIMIT)
        return s
    return in_namespace(host.ns, make)


def mac_bytes(mac):
    return bytes.fromhex(mac.replace(":", ""))


def test_forwarding_moves(vm):
    """The entry is like a learned one: when the address speaks elsewhere it goes there."""
    host, directory, definition, _ = vm
    tap = host.tool("attach", directory, 0, definition)["tap"]

    def where():
        return {e["ifname"] for e in fdb(host, MACS[0]) if e.get("vlan", 1) == 1}
    assert where() == {tap}
    with packet_socket(host, "out1") as s:
        s.send(b"\xff" * 6 + mac_bytes(MACS[0]) + b"\x88\xb5" + bytes(46))
    until(lambda: where() == {"out0"})
    # And attaching takes it back: what is known of the old place does not stand in the way.
    host.tool("attach", directory, 0, definition)
    assert where() == {tap}


def test_forwarding_ages(vm):
    host, directory, definition, _ = vm
    host.ip("link", "set", "br0", "type", "bridge", "ageing_time", "100")
    host.tool("attach", directory, 1, definition)
    until(lambda: not fdb(host, MACS[1]))


def test_attach_fails(vm):
    host, directory, _, _ = vm
    said = host.tool("attach", directory, 0, host.definition("none", bridge='"br9"'))
    assert said["message"] == "nic net0: bridge br9 does not exist on this host" and "ip link add" in said["hint"]
    said = host.tool("attach", directory, 0, host.definition("veth", bridge='"out1"'))
    assert "not a bridge" in said["message"]
    host.ip("link", "add", "br1", "type", "bridge")
    said = host.tool("attach", directory, 1, host.definition("plain", bridge='"br1"', vlan=7))
    assert "does not filter VLANs" in said["message"] and "vlan_filtering" in said["hint"]
    assert all("master" not in link(host, tap) for tap in host.taps())


def frames(s, mac, n):
    seen = []
    while len(seen) < n:
        frame = s.recv(2048)
        if frame[6:12] == mac_bytes(mac):
            seen.append(frame)
    return seen


def test_announce(vm):
    host, directory, definition, _ = vm
    host.tool("attach", directory, 0, definition)
    with packet_socket(host, "out1") as s:
        assert host.tool("announce", directory, 0, definition) == {"sent": 2}
        arp, na = frames(s, MACS[0], 2)
    assert arp[:14] == b"\xff" * 6 + mac_bytes(MACS[0]) + b"\x08\x06"
    assert arp[28:32] == arp[38:42] == bytes([10, 0, 0, 5])
    assert na[:6] == bytes.fromhex("333300000001") and na[12:14] == b"\x86\xdd"
    assert na[22:38] == socket.inet_pton(socket.AF_INET6, "fd00::5") == na[62:78]
    # A kernel believes both: no entry is made unasked, one that is there is changed.
    for address in ("10.0.0.5", "fd00::5"):
        host.ip("neigh", "replace", address, "lladdr", "52:54:00:00:00:01", "dev", "br0", "nud", "stale")
    host.tool("announce", directory, 0, definition)
    until(lambda: host.ip("neigh", "show", "dev", "br0").count(MACS[0]) == 2)


def listen_silently(host, address):
    def make():
        s = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
        s.settimeout(LIMIT)
        return s
    return in_namespace(host.ns, make)


@pytest.mark.parametrize("address", ["10.9.0.1", "fd09::1"])
def test_shutdown_sockets(vm, address):
    """A target that accepts and is silent: shutting QEMU's socket from outside ends the migration."""
    host, directory, _, _ = vm
    with listen_silently(host, address) as server:
        port = server.getsockname()[1]
        uri = f"tcp:[{address}]:{port}" if ":" in address else f"tcp:{address}:{port}"
        capabilities = {"capabilities": [{"capability": "return-path", "state": True}, {"capability": "events", "state": True}]}
        said = host.qmp(directory, "migrate-set-capabilities=" + json.dumps(capabilities),
                        "migrate=" + json.dumps({"uri": uri}))
        assert all("error" not in line for line in said), said
        peer, _ = server.accept()
        assert host.tool("shutdown", directory, address, port + 1) == {"shut": 0}
        assert host.tool("shutdown", directory, "10.9.0.9", port) == {"shut": 0}
        n = host.tool("shutdown", directory, address, port)["shut"]
        assert n >= 1
        peer.close()

    def migration_failed():
        said, = [line for line in host.qmp(directory, "query-migrate") if "event" not in line]
        assert "return" in said, (said, host.tool("last-words", directory))
        return said["return"].get("status") == "failed"
    until(migration_failed)
    assert host.tool("shutdown", directory, "example.org", 1)["error"] == "EINVAL"


def test_same_memory_twice(vm):
    """An upgrade's second QEMU: same memory and disk, taps and sockets of its own."""
    host, directory, definition, pid = vm
    second = host.tmp / "run/vm/qemu.2"
    said, _ = host.start(second, definition, "incoming", directory)
    assert "pid" in said, said
    status, = host.qmp(second, "query-status")
    assert status["return"]["status"] == "inmigrate"
    assert len(host.taps()) == 4
    memory = [os.stat(f"/proc/{p}/fd/5").st_ino for p in (pid, said["pid"])]
    assert memory[0] == memory[1]
    host.tool("kill", directory)
    until(lambda: len(host.taps()) == 2)
    assert host.tool("adopt", second) == {"pid": said["pid"]}


def test_qmp(vm):
    host, directory, _, _ = vm
    said = host.qmp(directory, "migrate-pause", "no-such-command", "cont", "wait=RESUME", "stop", "wait=STOP",
                    "quit", "query-status")
    assert said[0]["error"].startswith("GenericError: ")
    assert said[1]["error"].startswith("CommandNotFound: ")
    assert [line["event"] for line in said if "event" in line][:2] == ["RESUME", "STOP"]
    assert "SHUTDOWN" in [line.get("event") for line in said]
    assert said[-1] == {"closed": "EPIPE"}
