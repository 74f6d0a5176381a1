# SPDX-License-Identifier: GPL-2.0-or-later
"""Every kind of connection a guest can have, led from one strict firewall to another (ctlab.py). Needs root.

fw2 takes nothing new at all: what goes on through it was carried. Where no socket makes a protocol or a state, segments are made
here and sent through raw sockets; the client's and the VM's kernel take no part in these.
"""
import itertools
import zlib

from ctlab import *  # fixtures too

RULES = """
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
# What the ends' own kernels would answer to segments that are none of theirs.
SILENT = """
flush ruleset
table inet silent {
    chain out { type filter hook output priority 0;
        meta l4proto { tcp, udp } th dport 40000-49999 meta mark != 1 drop
        meta l4proto { tcp, udp } th sport 40000-49999 meta mark != 1 drop
        icmp type destination-unreachable drop
        icmpv6 type { destination-unreachable, parameter-problem } drop
    }
}
"""


def load(fw, **rules):
    fw.exec("nft", "-f", "-", stdin=RULES % {hook: rules.get(hook, "") for hook in HOOKS})


@pytest.fixture(scope="module")
def shared():
    it = Lab()
    for end in (it.client, it.vm):
        end.exec("nft", "-f", "-", stdin=SILENT)
    yield it
    it.close()


@pytest.fixture
def lab(shared):
    """One lab for all, empty and at its beginning for each."""
    for fw in (shared.fw1, shared.fw2):
        fw.exec("conntrack", "-F")
        load(fw, new="accept" if fw is shared.fw1 else "")
    shared.lead(1)
    return shared


def carry(lab, tools, *words, addresses=(VM, VM6), settle=1):
    """From fw1 to fw2, settled and compared; @return: what the sink said."""
    follower, applier = ferry(lab, tools, *words, addresses=addresses, settle=settle)
    last = follower.stop()
    applied = applier.line("applied")
    assert applied["applied"] == last["entries"], (applied, last)
    assert applied["refused"] == applied["failed"] == 0, applied
    applier.line("settled")
    assert applier.proc.wait(LIMIT) == 0
    return applied


def carried_all(lab, tools, n, *words):
    """n entries go over, and all that can be told of them is the same there."""
    before = dump(lab.fw1, VM, VM6)
    assert len(before) == n
    carry(lab, tools, *words)
    assert dump(lab.fw2, VM, VM6) == before
    for address in (VM, VM6):
        assert lab.fw2.connections(address) == lab.fw1.connections(address)
    lab.lead(2)


# ---- segments made by hand ----

class Ends:
    """Raw sockets of who begins (a) and of the other (b): of the client and the VM, or the other way round."""
    ports = itertools.count(40001)

    def __init__(self, lab, protocol, v6=False, out=False):
        family = socket.AF_INET6 if v6 else socket.AF_INET
        self.protocol, self.v6 = protocol, v6
        places = [(lab.client, CLIENT6 if v6 else CLIENT), (lab.vm, VM6 if v6 else VM)]
        (ns_a, a), (ns_b, b) = reversed(places) if out else places
        self.address = {"a": a, "b": b}
        port = next(self.ports)
        self.port = {"a": port, "b": port}
        self.socket = {}
        for end, ns in (("a", ns_a), ("b", ns_b)):
            self.socket[end] = s = ns.socket(family, socket.SOCK_RAW, protocol)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)
            s.bind((self.address[end], 0))
            s.connect((self.address["b" if end == "a" else "a"], 0))

    def other(self, end):
        return "b" if end == "a" else "a"

    def pseudo(self, end, size):
        src, dst = (socket.inet_pton(socket.AF_INET6 if self.v6 else socket.AF_INET, self.address[e])
                    for e in (end, self.other(end)))
        return src + dst + (struct.pack("!II", size, self.protocol) if self.v6 else struct.pack("!HH", self.protocol, size))

    def transmit(self, end, packet, limit=3):
        """@return: whether it arrived"""
        there = self.socket[self.other(end)]
        self.socket[end].send(packet)
        end_of_time = time.monotonic() + limit
        while (left := end_of_time - time.monotonic()) > 0:
            there.settimeout(left)
            try:
                data = there.recv(4096)
            except OSError:
                return False
            if (data if self.v6 else data[(data[0] & 15) * 4:]) == packet:
                return True
        return False

    def close(self):
        for s in self.socket.values():
            s.close()


def checksum(data):
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


class Segments(Ends):
    """A TCP connection in words: "a:S b:SA a:A a:P b:F"; P is data with an acknowledgement, F too. Three times P is more than the
    window, if its scale is not known."""
    BITS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16}
    SCALE = {"a": 7, "b": 9}

    def __init__(self, lab, v6=False, out=False):
        super().__init__(lab, socket.IPPROTO_TCP, v6, out)
        self.next = {"a": 0x1000, "b": 0xfffff800}  # b's goes over zero soon
        self.heard, self.sent = {}, {}

    def segment(self, end, flags):
        bits = sum(self.BITS[f] for f in flags)
        if flags in ("P", "F"):
            bits |= 16
        payload = bytes(1200) if "P" in flags else b""
        options = b""
        if "S" in flags:
            options = bytes([2, 4, 5, 180, 4, 2, 1, 1, 3, 3, self.SCALE[end], 0])
        seq = self.next[end]
        ack = self.heard.get(end, 0) if bits & 16 else 0
        head = struct.pack("!HHIIBBHHH", self.port[end], self.port[self.other(end)], seq, ack, (20 + len(options)) << 2, bits,
                           1000, 0, 0)
        packet = head + options + payload
        packet = packet[:16] + struct.pack("!H", checksum(self.pseudo(end, len(packet)) + packet)) + packet[18:]
        after = seq + len(payload) + ("S" in flags) + ("F" in flags) & 0xffffffff
        return packet, after

    def say(self, script, limit=3):
        """@return: the first word that did not arrive, or None; a lower-case flag is sent again, with the number it had."""
        for word in script.split():
            end, flags = word.split(":")
            if flags.islower():
                flags = flags.upper()
                self.next[end] = self.sent[end, flags[0]]
            packet, after = self.segment(end, flags)
            self.sent[end, flags[0]] = self.next[end]
            self.next[end] = after
            if not self.transmit(end, packet, limit):
                return word
            self.heard[self.other(end)] = after
        return None


OPEN = "a:S b:SA a:A a:P b:P a:P b:P "
STATES = {  # what was said before, what is said after, the state in between, the state at the end
    "syn sent": ("a:S", "b:SA a:A b:P b:P b:P a:P a:P a:P b:P", "SYN_SENT", "ESTABLISHED"),
    "syn sent by both": ("a:S b:S", "a:sa b:sa a:P a:P a:P b:P b:P b:P", "SYN_SENT2", "ESTABLISHED"),
    "syn received": ("a:S b:SA", "a:A b:P b:P b:P a:P a:P a:P", "SYN_RECV", "ESTABLISHED"),
    "established": (OPEN, "b:P b:P b:P a:P a:P a:P b:A", "ESTABLISHED", "ESTABLISHED"),
    "client closed": (OPEN + "a:F", "b:P b:A a:A b:P a:A b:F a:A", "FIN_WAIT", "TIME_WAIT"),
    "client half closed": (OPEN + "a:F b:A", "b:P a:A b:P b:F a:A", "CLOSE_WAIT", "TIME_WAIT"),
    "server half closed": (OPEN + "b:F a:A", "a:P b:A a:P a:F b:A", "CLOSE_WAIT", "TIME_WAIT"),
    "last ack": (OPEN + "a:F b:A b:P b:F", "a:A", "LAST_ACK", "TIME_WAIT"),
    "time wait": (OPEN + "a:F b:A b:F a:A", "b:f a:A", "TIME_WAIT", "TIME_WAIT"),
    "reset": (OPEN + "a:R", "b:P", "CLOSE", "CLOSE"),
}


@pytest.mark.parametrize("v6", (False, True), ids=("ipv4", "ipv6"))
def test_tcp_states(lab, tools, v6):
    """All at once: each state goes over, and what comes next in it passes; window checks are strict by then."""
    made = {(name, out): Segments(lab, v6, out) for name in STATES for out in (False, True)}
    row = {which: STATES[which[0]] for which in made}

    def states(fw):
        lines = [line for a in (VM, VM6) for line in fw.connections(a)]
        return {which: line.split()[4] for which, c in made.items() for line in lines if f" sport={c.port['a']} " in line}
    try:
        for which, c in made.items():
            assert c.say(row[which][0]) is None, which
        assert states(lab.fw1) == {which: r[2] for which, r in row.items()}
        carried_all(lab, tools, len(made))
        stopped = {which: word for which, c in made.items() if (word := c.say(row[which][1], 0.3))}
        assert not stopped
        assert states(lab.fw2) == {which: r[3] for which, r in row.items()}
        assert lab.invalid(lab.fw2) == 0
    finally:
        for c in made.values():
            c.close()
