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
        meta l4proto { tcp, udp } th dport 20000-29999 meta mark != 1 drop
        meta l4proto { tcp, udp } th sport 20000-29999 meta mark != 1 drop
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
    ports = itertools.count(20001)

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


def lead_all(lab, tools, made, table):
    """Conversations {(name, whether the VM began): } of @table's rows, all at once, each in its state."""
    row = {which: table[which[0]] for which in made}

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


@pytest.mark.parametrize("v6", (False, True), ids=("ipv4", "ipv6"))
def test_tcp_states(lab, tools, v6):
    """All at once: each state goes over, and what comes next in it passes; window checks are strict by then."""
    lead_all(lab, tools, {(name, out): Segments(lab, v6, out) for name in STATES for out in (False, True)}, STATES)


# ---- other protocols ----

def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


class Sctp(Ends):
    """An association in chunks; no kernel of ours has such sockets. RFC 9260; the checksum is looked at by the firewall."""
    CHUNK = {"DATA": 0, "INIT": 1, "INIT_ACK": 2, "HEARTBEAT": 4, "HEARTBEAT_ACK": 5, "ABORT": 6, "SHUTDOWN": 7, "SHUTDOWN_ACK": 8,
             "COOKIE_ECHO": 10, "COOKIE_ACK": 11, "SHUTDOWN_COMPLETE": 14}
    TAG = {"a": 0xa0a0a0a0, "b": 0xb0b0b0b0}

    def __init__(self, lab, v6=False, out=False):
        super().__init__(lab, socket.IPPROTO_SCTP, v6, out)

    def packet(self, end, chunk):
        value = bytes(16) if not chunk.startswith("INIT") else struct.pack("!IIHHI", self.TAG[end], 65536, 1, 1, 1)
        tag = 0 if chunk == "INIT" else self.TAG[self.other(end)]
        head = struct.pack("!HHI", self.port[end], self.port[self.other(end)], tag)
        body = struct.pack("!BBH", self.CHUNK[chunk], 3 if chunk == "DATA" else 0, 4 + len(value)) + value
        return head + struct.pack("<I", crc32c(head + bytes(4) + body)) + body

    def say(self, script, limit=3):
        for word in script.split():
            end, chunk = word.split(":")
            if not self.transmit(end, self.packet(end, chunk), limit):
                return word
        return None


ASSOCIATED = "a:INIT b:INIT_ACK a:COOKIE_ECHO b:COOKIE_ACK a:DATA b:DATA "
ASSOCIATIONS = {
    "init": ("a:INIT", "b:INIT_ACK a:COOKIE_ECHO b:COOKIE_ACK a:DATA", "CLOSED", "ESTABLISHED"),
    "cookie wait": ("a:INIT b:INIT_ACK", "a:COOKIE_ECHO b:COOKIE_ACK a:DATA", "COOKIE_WAIT", "ESTABLISHED"),
    "cookie echoed": ("a:INIT b:INIT_ACK a:COOKIE_ECHO", "b:COOKIE_ACK a:DATA", "COOKIE_ECHOED", "ESTABLISHED"),
    "established": (ASSOCIATED, "a:DATA b:DATA a:HEARTBEAT b:HEARTBEAT_ACK", "ESTABLISHED", "ESTABLISHED"),
    "shutdown sent": (ASSOCIATED + "a:SHUTDOWN", "b:SHUTDOWN_ACK a:SHUTDOWN_COMPLETE", "SHUTDOWN_SENT", "CLOSED"),
    "shutdown received": (ASSOCIATED + "b:SHUTDOWN", "a:SHUTDOWN_ACK b:SHUTDOWN_COMPLETE", "SHUTDOWN_RECD", "CLOSED"),
    "shutdown acknowledged": (ASSOCIATED + "a:SHUTDOWN b:SHUTDOWN_ACK", "a:SHUTDOWN_COMPLETE", "SHUTDOWN_ACK_SENT", "CLOSED"),
}


@pytest.mark.parametrize("v6", (False, True), ids=("ipv4", "ipv6"))
def test_sctp_states(lab, tools, v6):
    lead_all(lab, tools, {(name, out): Sctp(lab, v6, out) for name in ASSOCIATIONS for out in (False, True)}, ASSOCIATIONS)


class Datagrams(Ends):
    """A protocol that is what the packets say: the same to and fro."""

    def __init__(self, lab, protocol, to="", fro="", v6=False, out=False):
        super().__init__(lab, protocol, v6, out)
        self.packet = {"a": bytes.fromhex(to) or bytes(range(24)), "b": bytes.fromhex(fro or to) or bytes(range(24))}
        assert self.works(3)

    def works(self, limit=0.5):
        return self.transmit("a", self.packet["a"], limit) and self.transmit("b", self.packet["b"], limit)


@pytest.mark.parametrize("v6", (False, True), ids=("ipv4", "ipv6"))
def test_protocols_without_sockets(lab, tools, v6):
    """GRE without keys; DCCP, which Linux 6.18 tracks like any it does not know, and one that nobody knows.

    The kernel cannot be told GRE's timeouts and sets what is left of them to 0 at the first packet: several must pass.
    """
    made = {(protocol, out): Datagrams(lab, protocol, to, v6=v6, out=out)
            for protocol, to in ((47, "00000800" + 20 * "00"), (33, ""), (253, "")) for out in (False, True)[:1]}
    try:
        carried_all(lab, tools, len(made))
        assert {which: [c.works() for _ in range(3)] for which, c in made.items()} == {which: [True] * 3 for which in made}
    finally:
        for c in made.values():
            c.close()


# ---- translated ----

V6 = {"family": socket.AF_INET6}
TRANSLATED = {  # rules of fw1 (destination, source), flows through them
    "destination": (
        f"ip daddr {PUBLIC} tcp dport 8080 dnat ip to {VM}:7; ip daddr {PUBLIC} dnat ip to {VM}; ip6 daddr {PUBLIC6} dnat ip6 to {VM6}",
        "",
        lambda lab: [Tcp(lab.client, lab.vm, PUBLIC, 8080, bind=7), Tcp(lab.client, lab.vm, PUBLIC, 81), Udp(lab.client, lab.vm, PUBLIC, 82, bind=82),
                     Echo(lab.client, PUBLIC), Tcp(lab.client, lab.vm, PUBLIC6, 83, **V6), Echo(lab.client, PUBLIC6, **V6)],
    ),
    "source": (
        "",
        f"ip saddr {VM} tcp dport 80 snat ip to {OUTSIDE}:5000-5001; ip saddr {VM} snat ip to {OUTSIDE}; ip6 saddr {VM6} snat ip6 to {OUTSIDE6}",
        lambda lab: [Tcp(lab.vm, lab.client, CLIENT, 80), Tcp(lab.vm, lab.client, CLIENT, 81), Udp(lab.vm, lab.client, CLIENT, 82),
                     Echo(lab.vm, CLIENT), Tcp(lab.vm, lab.client, CLIENT6, 83, **V6), Udp(lab.vm, lab.client, CLIENT6, 84, **V6),
                     Echo(lab.vm, CLIENT6, **V6)],
    ),
    "both": (
        f"ip daddr {PUBLIC} tcp dport 8080 dnat ip to {VM}:7; ip daddr {PUBLIC} dnat ip to {VM}; ip6 daddr {PUBLIC6} dnat ip6 to {VM6}",
        f"ip daddr {VM} tcp dport 7 snat ip to {OUTSIDE}:5000; ip daddr {VM} snat ip to {OUTSIDE}; ip6 daddr {VM6} snat ip6 to {OUTSIDE6}",
        lambda lab: [Tcp(lab.client, lab.vm, PUBLIC, 8080, bind=7), Tcp(lab.client, lab.vm, PUBLIC, 81), Udp(lab.client, lab.vm, PUBLIC, 82, bind=82),
                     Echo(lab.client, PUBLIC), Tcp(lab.client, lab.vm, PUBLIC6, 83, **V6), Echo(lab.client, PUBLIC6, **V6)],
    ),
}


@pytest.mark.parametrize("kind", TRANSLATED)
def test_translated(lab, tools, kind):
    dnat, snat, flows = TRANSLATED[kind]
    load(lab.fw1, dnat=dnat, snat=snat, new="accept")
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(contextlib.closing(f)) for f in flows(lab)]
        carried_all(lab, tools, len(made))
        assert [f.works() for f in made] == [True] * len(made)
        assert lab.invalid(lab.fw2) == 0


# ---- marks, labels, zones ----

def test_marks_and_labels(lab, tools):
    """Labels are kept where a rule uses them; elsewhere the kernel forgets them, and this is counted."""
    load(lab.fw1, new="tcp dport 81 ct mark set 0x101 ct label set 5 accept; tcp dport 82 ct mark set 0xfffffffe ct label set 127 accept")
    with contextlib.closing(Tcp(lab.client, lab.vm, VM, 81)) as one, contextlib.closing(Tcp(lab.client, lab.vm, VM, 82)) as other:
        known = dump(lab.fw1, VM)
        assert sorted((said[1], said[3]) for said in known.values()) == [
            (b"\x00\x00\x01\x01", (1 << 5).to_bytes(16, "little")), (b"\xff\xff\xff\xfe", (1 << 127).to_bytes(16, "little"))]
        load(lab.fw2, forward="ct label 9 accept")
        assert carry(lab, tools)["reasons"].get("without-labels", 0) == 0
        assert dump(lab.fw2, VM) == known
        lab.fw2.exec("conntrack", "-F")
        load(lab.fw2)
        assert carry(lab, tools)["reasons"]["without-labels"] == 2
        lab.lead(2)
        assert one.works() and other.works()


ZONES = {
    "both": "tcp dport 81 ct zone set 5; tcp sport 81 ct zone set 5",
    "original": "tcp dport 81 ct original zone set 5",
    "reply": "tcp dport 81 ct reply zone set 5; tcp sport 81 ct reply zone set 5",
}


@pytest.mark.parametrize("zones", ZONES)
def test_zones(lab, tools, zones):
    load(lab.fw1, raw=ZONES[zones], new="accept")
    load(lab.fw2, raw=ZONES[zones])
    with contextlib.closing(Tcp(lab.client, lab.vm, VM, 81)) as flow, contextlib.closing(Tcp(lab.client, lab.vm, VM, 82)) as plain:
        assert sum("zone" in line for line in lab.fw1.connections(VM)) == 1
        carried_all(lab, tools, 2)
        assert flow.works() and plain.works()
