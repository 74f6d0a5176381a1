# SPDX-License-Identifier: GPL-2.0-or-later
"""What the tests of vmferry-conntrack share: two strict firewalls, flows that are led from one to the other, its two ends.

A client and a VM's address (both network namespaces) reach each other through firewall fw1. Its connections are followed there and
applied in fw2; then the routes change. fw2 drops what is not established: a connection that goes on was carried.

VMFERRY_BUILD: build directory (src/companions/vmferry-conntrack in it).
"""
import contextlib
import ctypes
import ipaddress
import json
import os
import pathlib
import re
import select
import signal
import socket
import struct
import subprocess
import threading
import time
import zlib

import pytest

BUILD = pathlib.Path(os.environ.get("VMFERRY_BUILD", "build"))
TOOL = BUILD / "src/companions/vmferry-conntrack"
LIMIT = 60

VM, VM6, OTHER = "10.77.2.5", "fd77:2::5", "10.77.2.6"
CLIENT, CLIENT6 = "10.77.1.9", "fd77:1::9"
PUBLIC, PUBLIC6 = "10.77.9.9", "fd77:9::9"  # fw1 translates it to the VM
OUTSIDE, OUTSIDE6 = "10.77.9.8", "fd77:9::8"  # fw1 gives it to the VM's connections to port 9000

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not TOOL.exists(), reason=f"no {TOOL}"),
]

RULES = """
table inet fw {
    chain forward {
        type filter hook forward priority 0; policy drop;
        ct state invalid counter drop
        tcp dport 7 ct mark set 0x77
        ct state established,related accept
        ct state new tcp flags & (fin|syn|rst|ack) == syn accept
        %s
    }
    chain out { type nat hook postrouting priority 100;
        %s
    }
    chain in { type nat hook prerouting priority -100;
        %s
    }
}
"""
RULES_1 = RULES % (
    "meta l4proto { udp, icmp, ipv6-icmp } accept",
    f"ip saddr {VM} tcp dport 9000 snat ip to {OUTSIDE}",
    f"ip daddr {PUBLIC} tcp dport 8080 dnat ip to {VM}:7; ip daddr {PUBLIC} udp dport 8080 dnat ip to {VM}:7",
)
RULES_2 = RULES % ("", "", "")


HOOKED = """
flush ruleset
table inet fw {
    %(more)s
    chain raw { type filter hook prerouting priority -300;
        %(raw)s
    }
    chain mangle { type filter hook prerouting priority -150;
        %(mangle)s
    }
    chain forward { type filter hook forward priority 0; policy drop;
        ct state invalid counter drop
        %(forward)s
        ct state established,related accept
        %(new)s
    }
    chain in { type nat hook prerouting priority -100;
        %(dnat)s
    }
    chain out { type nat hook postrouting priority 100;
        %(snat)s
    }
}
"""
HOOKS = ("more", "raw", "mangle", "forward", "dnat", "snat", "new")


def run(*words, check=True, stdin=None, limit=LIMIT):
    done = subprocess.run([str(w) for w in words], input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=limit)
    assert not check or done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def until(what, limit=LIMIT):
    """Waits for a state that nobody announces."""
    end = time.monotonic() + limit
    while not what():
        assert time.monotonic() < end, "waited too long"
        select.select([], [], [], 0.005)


class Namespace:
    def __init__(self, name):
        self.name = f"ct{os.getpid()}{name}"
        run("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")

    def ip(self, *words):
        return run("ip", "-n", self.name, *words)

    def exec(self, *words, **more):
        return run("ip", "netns", "exec", self.name, *words, **more)

    def start(self, *words, **more):
        return subprocess.Popen(["ip", "netns", "exec", self.name, *map(str, words)], **more)

    @contextlib.contextmanager
    def inside(self):
        """What is opened here belongs to the namespace; this thread comes back."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.name}") as there:
            assert libc.setns(there.fileno(), 0x40000000) == 0
            try:
                yield
            finally:
                assert libc.setns(home.fileno(), 0x40000000) == 0

    def socket(self, *kind):
        with self.inside():
            s = socket.socket(*kind)
        s.settimeout(20)
        return s

    def connections(self, address):
        """The entries with an address, without what differs from host to host."""
        lines = []
        for family in ("ipv4", "ipv6"):
            for line in self.exec("conntrack", "-L", "-o", "extended", "-f", family).splitlines():
                if f"={address} " in line:
                    line = re.sub(r"^(\S+ +\d+ \S+ +\d+) \d+ ", r"\1 ", line)
                    lines.append(re.sub(r" use=\d+", "", line).strip())
        return sorted(lines)

    def delete(self):
        run("ip", "netns", "del", self.name, check=False)


class Lab:
    """switch: two bridges; client on the left one, the VM on the right one, both firewalls on both."""

    def __init__(self):
        self.all = []
        try:
            self.make()
        except BaseException:
            self.close()
            raise

    def make(self):
        for name in ("switch", "client", "vm", "fw1", "fw2"):
            ns = Namespace(name)
            setattr(self, name, ns)
            self.all.append(ns)
        for side in ("left", "right"):
            self.switch.ip("link", "add", side, "type", "bridge", "stp_state", "0", "forward_delay", "0")
            self.switch.ip("link", "set", side, "up")
        self.plug(self.client, "left", CLIENT, CLIENT6)
        self.plug(self.vm, "right", VM, VM6, OTHER)
        for n, fw in ((1, self.fw1), (2, self.fw2)):
            self.plug(fw, "left", f"10.77.1.{n}", f"fd77:1::{n}")
            self.plug(fw, "right", f"10.77.2.{n}", f"fd77:2::{n}")
            fw.exec("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1",
                    "net.netfilter.nf_conntrack_events=1", "net.netfilter.nf_conntrack_tcp_loose=0",
                    "net.ipv4.conf.all.send_redirects=0")
        self.fw1.exec("nft", "-f", "-", stdin=RULES_1)
        self.fw2.exec("nft", "-f", "-", stdin=RULES_2)
        self.lead(1)

    def plug(self, ns, side, *addresses):
        self.switch.ip("link", "add", f"{ns.name[-4:]}{side}", "type", "veth", "peer", "name", side, "netns", ns.name)
        self.switch.ip("link", "set", f"{ns.name[-4:]}{side}", "master", side, "up")
        ns.exec("sysctl", "-qw", f"net.ipv6.conf.{side}.accept_dad=0")
        ns.ip("link", "set", side, "up")
        for a in addresses:
            ns.ip("addr", "add", f"{a}/{64 if ':' in a else 24}", "dev", side, *(["nodad"] if ":" in a else []))

    def lead(self, n):
        """All routes through firewall @n."""
        for ns, other, net in ((self.client, 1, 2), (self.vm, 2, 1)):
            lines = [f"route replace 10.77.{net}.0/24 via 10.77.{other}.{n}",
                     f"route replace 10.77.9.0/24 via 10.77.{other}.{n}",
                     f"route replace fd77:{net}::/64 via fd77:{other}::{n}",
                     f"route replace fd77:9::/64 via fd77:{other}::{n}"]
            run("ip", "-n", ns.name, "-batch", "-", stdin="\n".join(lines) + "\n")

    def invalid(self, fw):
        rules = fw.exec("nft", "list", "chain", "inet", "fw", "forward")
        return int(re.search(r"ct state invalid counter packets (\d+)", rules)[1])

    def close(self):
        for ns in reversed(self.all):
            ns.delete()


def load(fw, **rules):
    """Other rules, at these hooks; what is established passes."""
    fw.exec("nft", "-f", "-", stdin=HOOKED % {hook: rules.get(hook, "") for hook in HOOKS})


@pytest.fixture
def lab():
    it = Lab()
    yield it
    it.close()


def said_by(proc):
    """The next JSON line; a tool that says nothing is killed, and that is the end of its lines."""
    timer = threading.Timer(LIMIT, proc.kill)
    timer.start()
    try:
        text = proc.stderr.readline()
    finally:
        timer.cancel()
    assert text, "the tool says no more"
    return json.loads(text)


def selection(words):
    """Addresses among the words become options."""
    return [f"--address={w}" if re.fullmatch(r"[0-9a-f.:]*[.:][0-9a-f.:]+", str(w)) else w for w in words]


class Follower:
    def __init__(self, ns, *addresses, out=subprocess.PIPE, interval=5, **more):
        self.proc = ns.start(TOOL, "follow", "--json", "--interval", interval, *selection(addresses), stdin=subprocess.PIPE,
                             stdout=out, stderr=subprocess.PIPE, **more)
        while (said := said_by(self.proc)["event"]) == "warning":
            pass
        assert said == "complete"

    def stop(self):
        """The switch: the last delta and the mark; then the other end sees the end."""
        self.proc.send_signal(signal.SIGUSR1)
        said = [json.loads(line) for line in self.proc.stderr.readlines()]
        self.last, self.switched = said[-2:]
        assert (self.last["event"], self.switched["event"]) == ("last", "switched")
        assert self.proc.wait(LIMIT) == 0
        return self.last


class Applier:
    def __init__(self, ns, *words, stdin=subprocess.PIPE):
        self.proc = ns.start(TOOL, "apply", "--json", *selection(words), stdin=stdin, stderr=subprocess.PIPE)

    def line(self, event):
        said = said_by(self.proc)
        assert said["event"] == event, said
        return said


@pytest.fixture
def tools():
    with contextlib.ExitStack() as stack:
        def add(tool):
            def end():
                if tool.proc.poll() is None:
                    tool.proc.kill()
                tool.proc.wait()
                for f in (tool.proc.stdin, tool.proc.stdout, tool.proc.stderr):
                    if f:
                        f.close()
            stack.callback(end)
            return tool
        yield add


def ferry(lab, tools, *words, addresses=(VM, VM6), settle=300, back=False, **more):
    """fw1's follower into fw2's sink; @back: fw2's into fw1's."""
    read, write = os.pipe()
    here, there = (lab.fw2, lab.fw1) if back else (lab.fw1, lab.fw2)
    follower = tools(Follower(here, *addresses, out=write, **more))
    applier = tools(Applier(there, "--settle", settle, *words, *addresses, stdin=read))
    os.close(read)
    os.close(write)
    return follower, applier


# ---- flows: each is opened through fw1, and then says whether it still carries something both ways ----

class Tcp:
    text = b"hello"

    def __init__(self, client, server, address, port, family=socket.AF_INET, bind=None):
        self.client = client
        self.a = client.socket(family, socket.SOCK_STREAM)
        with server.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", bind or port))
            listener.listen()
            self.a.connect((address, port))
            self.b, _ = listener.accept()
        self.b.settimeout(20)
        assert self.works()

    def works(self):
        try:
            for one, other in ((self.a, self.b), (self.b, self.a)):
                one.sendall(self.text)
                if other.recv(len(self.text)) != self.text:
                    return False
        except OSError:
            return False
        return True

    def again(self, server):
        """Breaks off, and connects with the same addresses and ports."""
        here, there, family = self.a.getsockname(), self.a.getpeername(), self.a.family
        self.a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.a.close()
        try:
            while self.b.recv(100):
                pass
        except OSError:
            pass
        self.b.close()
        with server.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(there)
            listener.listen()
            self.a = self.client.socket(family, socket.SOCK_STREAM)
            self.a.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.a.bind(here)
            self.a.connect(there)
            self.b, _ = listener.accept()
        self.b.settimeout(20)

    def close(self):
        """Nothing is sent again that a firewall which forgot the connection would count as invalid, in a later test."""
        for s in (self.a, self.b):
            if s.fileno() >= 0:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            s.close()


class HalfClosed(Tcp):
    def __init__(self, *words, **more):
        super().__init__(*words, **more)
        self.a.shutdown(socket.SHUT_WR)
        assert self.b.recv(1) == b"" and self.works()

    works_before = Tcp.works

    def works(self):
        if not hasattr(self, "half"):
            self.half = True
            return self.works_before()
        try:
            self.b.sendall(b"hello")
            return self.a.recv(5) == b"hello"
        except OSError:
            return False


class Udp:
    def __init__(self, client, server, address, port, family=socket.AF_INET, bind=None):
        self.b = server.socket(family, socket.SOCK_DGRAM)
        self.b.bind((address if not bind else VM, bind or port))
        self.a = client.socket(family, socket.SOCK_DGRAM)
        self.a.connect((address, port))
        assert self.works()

    def works(self):
        try:
            self.a.send(b"question")
            data, peer = self.b.recvfrom(64)
            self.b.sendto(data, peer)
            return self.a.recv(64) == b"question"
        except OSError:
            return False

    def close(self):
        self.a.close()
        self.b.close()


class Echo:
    def __init__(self, client, address, family=socket.AF_INET):
        self.v6 = family == socket.AF_INET6
        self.s = client.socket(family, socket.SOCK_RAW, socket.getprotobyname("ipv6-icmp" if self.v6 else "icmp"))
        self.s.connect((address, 0))
        self.n = 0
        assert self.works()

    def works(self):
        self.n += 1
        packet = struct.pack("!BBHHH", 128 if self.v6 else 8, 0, 0, 4711, self.n)
        if not self.v6:
            total = sum(struct.unpack("!4H", packet))
            packet = packet[:2] + struct.pack("!H", ~((total & 0xffff) + (total >> 16)) & 0xffff) + packet[4:]
        answer = struct.pack("!HH", 4711, self.n)
        try:
            self.s.send(packet)
            while True:
                data = self.s.recv(256)
                data = data if self.v6 else data[20:]
                if data[0] == (129 if self.v6 else 0) and data[4:8] == answer:
                    return True
        except OSError:
            return False

    def close(self):
        self.s.close()


def open_flows(lab):
    v6 = {"family": socket.AF_INET6}
    return {
        "tcp in": Tcp(lab.client, lab.vm, VM, 7),
        "tcp out": Tcp(lab.vm, lab.client, CLIENT, 70),
        "tcp6": Tcp(lab.client, lab.vm, VM6, 71, **v6),
        "tcp translated to the VM": Tcp(lab.client, lab.vm, PUBLIC, 8080, bind=7),
        "tcp translated from the VM": Tcp(lab.vm, lab.client, CLIENT, 9000),
        "half closed": HalfClosed(lab.client, lab.vm, VM, 72),
        "udp": Udp(lab.client, lab.vm, VM, 53),
        "udp6": Udp(lab.client, lab.vm, VM6, 53, **v6),
        "udp translated": Udp(lab.client, lab.vm, PUBLIC, 8080, bind=7),
        "icmp": Echo(lab.client, VM),
        "icmp6": Echo(lab.client, VM6, **v6),
    }


@pytest.fixture
def flows(lab):
    made = open_flows(lab)
    yield made
    for f in made.values():
        f.close()


class Bulk:
    """A stream at full speed, and the longest time in which nothing arrived."""

    def __init__(self, flow):
        self.flow, self.received, self.gap, self.stop = flow, 0, 0.0, False
        self.threads = [threading.Thread(target=t) for t in (self.send, self.receive)]
        for t in self.threads:
            t.start()

    def send(self):
        block = bytes(1 << 16)
        with contextlib.suppress(OSError):
            while not self.stop:
                self.flow.a.sendall(block)

    def receive(self):
        last = time.monotonic()
        with contextlib.suppress(OSError):
            while not self.stop:
                n = len(self.flow.b.recv(1 << 20))
                now = time.monotonic()
                self.gap, last = max(self.gap, now - last), now
                self.received += n

    def end(self):
        self.stop = True
        for t in self.threads:
            t.join()


# ---- the wire format, from its description ----

def batch(records):
    body = b"".join(records)
    head = struct.pack("!IIII", 0x56464354, 1 << 24, len(records), len(body))
    return head + struct.pack("!I", zlib.crc32(head + body)) + body


def end():
    head = struct.pack("!IIII", 0x56464354, 0x01010000, 0, 0)
    return head + struct.pack("!I", zlib.crc32(head))


def tuple_of(n):
    return ipaddress.ip_address(VM).packed + bytes([192, 0, 2, 1 + n // 60000]) + struct.pack("!HH", 1024 + n % 60000, 80)


def put(n, state=3):
    return b"\x00\x06" + tuple_of(n) + struct.pack("!HIBBH", 0x0e, 432000, state, 0x77, 0x3333)


def delete(n):
    return b"\x02\x06" + tuple_of(n)


def read_deltas(stream, known):
    """All deltas to the end; IPv4 TCP only."""
    while head := stream.read(20):
        data = head + stream.read(struct.unpack("!I", head[12:16])[0])
        count, at = struct.unpack("!I", data[8:12])[0], 20
        assert zlib.crc32(data[:16] + data[20:]) == struct.unpack("!I", data[16:20])[0]
        for _ in range(count):
            kind, key = data[at], data[at + 2:at + 14]
            assert data[at + 1] == 6
            at += 14
            if kind & 3 == 2:
                known.pop(key, None)
            else:
                known[key] = data[at + 6]
                at += 10
        assert at == len(data)




def records(stream):
    """Wire batches as {what names it: the rest of it}; docs/wire.md. Left out: timeouts, and GRE's being fixed; that NAT has had its
    turn, which a kernel cannot be told; of TCP that data are not acknowledged yet, which no event tells, that the highest
    acknowledgement is known, which is not carried, and while it is opened
    liberal and whether the silent side scales its window."""
    found, at = {}, 0
    while at < len(stream):
        magic, _, count, size, crc = struct.unpack_from("!IIIII", stream, at)
        assert magic == 0x56464354 and zlib.crc32(stream[at:at + 16] + stream[at + 20:at + 20 + size]) == crc
        at += 20
        for _ in range(count):
            at = read_record(stream, at, found)
    return found


def read_record(stream, at, found):
    kind, protocol = stream[at:at + 2]
    size = 36 if kind & 4 else 12
    key, at = stream[at:at + 2 + size], at + 2 + size
    said = {}
    if kind & 8:
        said["reply"], at = stream[at:at + size], at + size
    if kind & 3 != 2:
        said["status"], at = struct.unpack_from("!H", stream, at)[0] & ~(0x180 | 0x400 * (protocol == 47)), at + 6
        if protocol == 6 and not kind & 0x20:
            tcp, at = bytearray(stream[at:at + 4]), at + 4
            tcp[2], tcp[3] = tcp[2] & ~0x30, tcp[3] & ~0x30
            if tcp[0] in (1, 9):  # SYN_SENT, SYN_SENT2
                tcp[2], tcp[3] = tcp[2] & ~8, tcp[3] & ~9
            said["tcp"] = tcp.hex(" ")
    if kind & 16:
        end, at = at + 2 + struct.unpack_from("!H", stream, at)[0], at + 2
        while at < end:
            said[stream[at] & 0x7f], at = stream[at + 2:at + 2 + stream[at + 1]], at + 2 + stream[at + 1]
    found[key[1:2] + key[2:] + bytes([kind & 0x24]) + said.pop(2, b"")] = said
    return at


def single_records(stream):
    """Wire batches as [(one record's bytes, what it says)]"""
    found, at, end = [], 0, 0
    while at < len(stream):
        if at == end:
            end, at = at + 20 + struct.unpack_from("!I", stream, at + 12)[0], at + 20
            continue
        said = {}
        after = read_record(stream, at, said)
        found.append((stream[at:after], *said.values()))
        at = after
    return found


def dump_wire(ns, *words):
    done = subprocess.run(["ip", "netns", "exec", ns.name, TOOL, "dump", *selection(words)], stdout=subprocess.PIPE,
                          timeout=LIMIT, check=True)
    return done.stdout


def dump(ns, *words):
    """All that vmferry-conntrack tells of a host's entries."""
    return records(dump_wire(ns, *words))
