# SPDX-License-Identifier: GPL-2.0-or-later
"""Every kind of connection a guest can have, led from one strict firewall to another (ctlab.py). Needs root.

fw2 takes nothing new at all: what goes on through it was carried. Where no socket makes a protocol or a state, segments are made
here and sent through raw sockets; the client's and the VM's kernel take no part in these.
"""
import itertools
import zlib

from ctlab import *  # fixtures too

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


def carry(lab, tools, *words, addresses=(VM, VM6), settle=1, ends=None):
    """From fw1 to fw2, settled and compared; @ends: that run already. @return: what the sink said."""
    follower, applier = ends or ferry(lab, tools, *words, addresses=addresses, settle=settle)
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

    def transmit(self, end, packet, limit=20):
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


def test_handshakes_of_real_sockets(lab, tools):
    """The SYN+ACK, or the acknowledgement of it, is lost until the switch; what is sent again goes through the other firewall."""
    hold = "table inet hold { chain out { type filter hook output priority 0; tcp %s 443 tcp flags & (syn|ack) == %s drop; }; }"
    with lab.vm.socket(socket.AF_INET, socket.SOCK_STREAM) as listener, contextlib.ExitStack() as stack:
        listener.bind((VM, 443))
        listener.listen()
        clients = []
        for ns, rule, state in ((lab.client, ("dport", "ack"), "SYN_RECV"), (lab.vm, ("sport", "syn|ack"), "SYN_SENT")):
            ns.exec("nft", "-f", "-", stdin=hold % rule)
            clients.append(stack.enter_context(lab.client.socket(socket.AF_INET, socket.SOCK_STREAM)))
            clients[-1].setblocking(False)
            assert clients[-1].connect_ex((VM, 443)) != 0
            port = clients[-1].getsockname()[1]
            until(lambda: any(f"{state} " in line and f"sport={port} " in line for line in lab.fw1.connections(VM)))
        carry(lab, tools)
        lab.lead(2)
        for ns in (lab.client, lab.vm):
            ns.exec("nft", "delete", "table", "inet", "hold")
        listener.settimeout(LIMIT)
        ends = {}
        for _ in clients:
            end, peer = listener.accept()
            ends[peer[1]] = stack.enter_context(end)
        for c in clients:
            c.settimeout(LIMIT)
            end = ends[c.getsockname()[1]]
            sender = threading.Thread(target=end.sendall, args=(bytes(4 << 20),))
            sender.start()
            received = 0
            while received < 4 << 20:
                received += len(c.recv(1 << 20))
            sender.join()
        assert lab.invalid(lab.fw2) == 0


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


SELECTIONS = {  # options; ports of the connections meant
    "address": ([VM], {81, 82, 83}),
    "mark": (["--mark=0x101"], {81, 84}),
    "mark under a mask": (["--mark=0x100/0xff00"], {81, 84}),
    "zone": (["--zone=5"], {83, 85}),
    "address and mark": ([VM, "--mark=0x100/0xff00"], {81}),
    "address and zone": ([VM, "--zone=5"], {83}),
    "mark and zone": (["--zone=5", "--mark=0x200/0xff00"], {85}),
    "all": ([VM, OTHER, "--zone=5", "--mark=0x203"], {85}),
    "two addresses": ([VM, OTHER], {81, 82, 83, 84, 85}),
}


def ports(fw):
    return {int(p) for p in re.findall(r" dport=(8\d) src", fw.exec("conntrack", "-L"))}


def test_selections(lab, tools):
    """By address, mark, zone and mixes; the same for what is there before and what comes or gets its mark while it is followed."""
    rules = ("tcp dport { 83, 85 } ct zone set 5; tcp sport { 83, 85 } ct zone set 5",
             "tcp dport { 81, 84 } ct mark set 0x101; tcp dport 82 ct mark set 0x202; tcp dport 85 ct mark set 0x203")
    load(lab.fw1, raw=rules[0], mangle=rules[1], new="accept")

    def connect(stack):
        for port in range(81, 86):
            stack.enter_context(contextlib.closing(Tcp(lab.client, lab.vm, VM if port < 84 else OTHER, port)))
    for name, (words, meant) in SELECTIONS.items():
        with contextlib.ExitStack() as stack:
            for when in ("before", "meanwhile"):
                for fw in (lab.fw1, lab.fw2):
                    fw.exec("conntrack", "-F")
                if when == "before":
                    connect(stack)
                follower, applier = ferry(lab, tools, settle=1, addresses=words)
                if when == "meanwhile":
                    connect(stack)
                assert follower.stop()["entries"] == len(meant), (name, when)
                applied = applier.line("applied")
                assert (applied["refused"], applied["failed"]) == (0, 0), (name, when, applied)
                assert ports(lab.fw2) == meant, (name, when)


def test_a_mark_comes_and_goes(lab, tools):
    """A connection that gets its mark late is fetched whole, in its zone; one that loses it ends there."""
    zone = "tcp dport 81 ct zone set 5; tcp sport 81 ct zone set 5"
    load(lab.fw1, raw=zone, new="accept")
    with contextlib.closing(Tcp(lab.client, lab.vm, VM, 81)) as flow:
        follower, applier = ferry(lab, tools, addresses=["--mark=0x100/0xff00"])
        for mark, there in ((0x101, True), (0x207, False), (0x102, True), (0x1ff, True)):
            load(lab.fw1, raw=zone, mangle=f"tcp dport 81 ct mark set {mark}", new="accept")
            assert flow.works()
            until(lambda: [f"mark={mark} " in line for line in lab.fw2.connections(VM)] == [True] * there)
        follower.stop()
        assert applier.line("applied")["applied"] == 1
        applier.line("settled")
        assert dump(lab.fw2, VM) == dump(lab.fw1, VM)
        load(lab.fw2, raw=zone)
        lab.lead(2)
        assert flow.works()


# ---- helpers: connections that belong to others ----

HELPERS = {
    "more": """
        ct helper ftp { type "ftp" protocol tcp; }
        ct helper pptp { type "pptp" protocol tcp; }
        ct helper tftp { type "tftp" protocol udp; }
    """,
    "mangle": """
        tcp dport 21 ct helper set "ftp"
        tcp dport 1723 ct helper set "pptp"
        udp dport 69 ct helper set "tftp"
    """,
}


class Lines(Tcp):
    text = b"NOOP\r\n"


class Ftp:
    """A control connection, and data connections either way that only the helper lets through. The server has @server's own address
    @own; who connects to it uses @address."""

    def __init__(self, client, server, address, own, family=socket.AF_INET):
        self.client, self.server, self.address, self.own, self.family = client, server, address, own, family
        self.control = Lines(client, server, address, 21, family)

    def line(self, one, other, text):
        one.sendall(text.encode() + b"\r\n")
        data = b""
        while not data.endswith(b"\r\n"):
            data += other.recv(200)
        return data.decode().strip()

    def listener(self, ns, address):
        s = ns.socket(self.family, socket.SOCK_STREAM)
        s.bind((address, 0))
        s.listen()
        return s

    def passive(self):
        """The server tells where it listens, for connect_passive()."""
        s = self.listener(self.server, self.own)
        port = s.getsockname()[1]
        self.line(self.control.a, self.control.b, "PASV")
        told = self.line(self.control.b, self.control.a,
                         f"227 Entering Passive Mode ({self.own.replace('.', ',')},{port >> 8},{port & 255})")
        *address, high, low = re.search(r"\((.*)\)", told)[1].split(",")
        return s, (".".join(address), int(high) << 8 | int(low))

    def active(self):
        s = self.listener(self.client, self.client_address())
        port = s.getsockname()[1]
        told = self.line(self.control.a, self.control.b,
                         f"PORT {self.client_address().replace('.', ',')},{port >> 8},{port & 255}")
        *address, high, low = told.split()[1].split(",")
        return s, (".".join(address), int(high) << 8 | int(low))

    def client_address(self):
        return self.control.a.getsockname()[0]

    def join(self, waiting, by):
        """The data connection that was agreed upon, or None."""
        listener, where = waiting
        flow = Tcp.__new__(Tcp)
        flow.a = by.socket(self.family, socket.SOCK_STREAM)
        flow.a.settimeout(LIMIT)
        listener.settimeout(LIMIT)
        try:
            if flow.a.connect_ex(where) != 0:
                return None
            flow.b, _ = listener.accept()
        finally:
            listener.close()
        flow.b.settimeout(20)
        return flow if flow.works() else None

    def works(self):
        return self.control.works()

    def close(self):
        self.control.close()


FTP = {  # rules of fw1: destination, source, zone; who connects to what
    "plain": ("", "", "", lambda lab: Ftp(lab.client, lab.vm, VM, VM)),
    "to another address": (f"ip daddr 10.77.9.209 dnat ip to {VM}", "", "", lambda lab: Ftp(lab.client, lab.vm, "10.77.9.209", VM)),
    "from another address": ("", f"ip saddr {VM} snat ip to 10.77.9.208", "", lambda lab: Ftp(lab.vm, lab.client, CLIENT, CLIENT)),
    "zone": ("", "", "ct zone set 5", lambda lab: Ftp(lab.client, lab.vm, VM, VM)),
}


@pytest.mark.parametrize("when", ("before", "meanwhile"))
@pytest.mark.parametrize("kind", FTP)
def test_ftp(lab, tools, kind, when):
    """The control connection, its expectations and data connections go over; what was agreed upon before is done after."""
    dnat, snat, zone, connect = FTP[kind]
    load(lab.fw1, **HELPERS, raw=zone, dnat=dnat, snat=snat, new="tcp dport 21 accept")
    load(lab.fw2, raw=zone)
    with contextlib.ExitStack() as stack:
        ends = ferry(lab, tools, settle=1) if when == "meanwhile" else None
        ftp = stack.enter_context(contextlib.closing(connect(lab)))
        data = [stack.enter_context(contextlib.closing(ftp.join(ftp.passive(), ftp.client))),
                stack.enter_context(contextlib.closing(ftp.join(ftp.active(), ftp.server)))]
        waiting = ftp.active()
        expected = lab.fw1.exec("conntrack", "-L", "expect")
        assert "helper=ftp" in expected
        before = dump(lab.fw1, VM)
        assert len(before) == 4
        carry(lab, tools, ends=ends)
        assert dump(lab.fw2, VM) == before

        def told(fw):
            return [re.sub(r"^\d+ ", "", line) for line in fw.exec("conntrack", "-L", "expect").splitlines()]
        assert told(lab.fw2) == told(lab.fw1)
        lab.lead(2)
        assert [d.works() for d in data] == [True] * 2
        assert ftp.works()  # with its sequence numbers, where the text has got longer
        assert (late := ftp.join(waiting, ftp.server)), "expected before the switch"
        stack.enter_context(contextlib.closing(late))
        assert (new := ftp.join(ftp.passive(), ftp.client)), "the helper goes on"
        stack.enter_context(contextlib.closing(new))
        assert ftp.works()
        assert lab.invalid(lab.fw2) == 0


def test_masters_come_last(lab, tools):
    """Children and expectations that arrive in deltas before their master's belong to it in the end."""
    load(lab.fw1, **HELPERS, new="tcp dport 21 accept")
    with contextlib.closing(Ftp(lab.client, lab.vm, VM, VM)) as ftp, contextlib.ExitStack() as stack:
        data = stack.enter_context(contextlib.closing(ftp.join(ftp.passive(), ftp.client)))
        waiting = ftp.active()
        before = dump(lab.fw1, VM)
        sorted_records = sorted(single_records(dump_wire(lab.fw1, VM)), key=lambda r: (5 not in r[1], 10 not in r[1]))
        assert [[x in r[1] for x in (5, 10)] for r in sorted_records] == [[True, True], [True, False], [False, False]]
        sink = tools(Applier(lab.fw2, "--settle", 1, VM))
        for record, _ in sorted_records:
            sink.proc.stdin.write(batch([record]))
            sink.proc.stdin.flush()
        sink.proc.stdin.write(end())
        sink.proc.stdin.close()
        applied = sink.line("applied")
        assert (applied["applied"], applied["refused"], applied["failed"]) == (3, 0, 0), applied
        sink.line("settled")
        assert dump(lab.fw2, VM) == before
        assert len(lab.fw2.exec("conntrack", "-L", "expect").splitlines()) == 1
        lab.lead(2)
        assert data.works() and ftp.works()
        stack.enter_context(contextlib.closing(ftp.join(waiting, ftp.server)))


class Pptp:
    """A control connection with one call, which the helper learns; then GRE with the call's keys. RFC 2637."""

    def __init__(self, lab):
        self.control = Tcp.__new__(Pptp.Control)
        self.control.__init__(lab.client, lab.vm, VM, 1723)
        a, b = self.control.a, self.control.b
        self.say(a, b, 1, struct.pack("!HHIIHH", 0x100, 0, 1, 1, 1, 1) + bytes(128))
        self.say(b, a, 2, struct.pack("!HBBIIHH", 0x100, 1, 0, 1, 1, 1, 1) + bytes(128))
        self.say(a, b, 7, struct.pack("!HHIIIIHHHH", 0x1111, 1, 300, 9000, 1, 1, 64, 0, 0, 0) + bytes(128))
        self.say(b, a, 8, struct.pack("!HHBBHIHHI", 0x2222, 0x1111, 1, 0, 0, 9000, 64, 0, 0))
        self.tunnel = Ends(lab, 47)

    class Control(Tcp):
        def works(self):
            """It says nothing that is not PPTP."""
            Pptp.say(None, self.a, self.b, 5, bytes(4))
            Pptp.say(None, self.b, self.a, 6, bytes(8))
            return True

    def say(self, one, other, kind, body):
        packet = struct.pack("!HHIHH", 12 + len(body), 1, 0x1a2b3c4d, kind, 0) + body
        one.sendall(packet)
        assert other.recv(500) == packet

    def tunnel_works(self, limit=0.5):
        def packet(call):
            return struct.pack("!HHHHI", 0x3001, 0x880b, 4, call, 1) + b"data"
        return self.tunnel.transmit("a", packet(0x2222), limit) and self.tunnel.transmit("b", packet(0x1111), limit)

    def close(self):
        self.control.close()
        self.tunnel.close()


def test_pptp(lab, tools):
    """A tunnel; which of its keys belong together only the helper of the first firewall knew."""
    load(lab.fw1, **HELPERS, new="tcp dport 1723 accept")
    with contextlib.closing(Pptp(lab)) as pptp:
        follower, applier = ferry(lab, tools, settle=1)
        until(lambda: len(lab.fw2.exec("conntrack", "-L", "expect").splitlines()) == 2)
        assert pptp.tunnel_works(3)
        until(lambda: lab.fw2.exec("conntrack", "-L", "expect") == "")
        follower.stop()
        applied = applier.line("applied")
        assert (applied["applied"], applied["refused"], applied["failed"]) == (2, 0, 0), applied
        applier.line("settled")
        lab.lead(2)
        assert [pptp.tunnel_works() for _ in range(3)] == [True] * 3
        assert pptp.control.works()
        lab.fw1.exec("conntrack", "-F")
        load(lab.fw1)
        follower, applier = ferry(lab, tools, settle=1, back=True)
        follower.stop()
        assert applier.line("applied")["applied"] == 2
        lab.lead(1)
        assert [pptp.tunnel_works() for _ in range(3)] == [True] * 3


@pytest.mark.parametrize("to", (VM, PUBLIC), ids=("plain", "translated"))
def test_tftp(lab, tools, to):
    """Asked before the switch, answered from another port after it."""
    load(lab.fw1, **HELPERS, dnat=f"ip daddr {PUBLIC} dnat ip to {VM}", new="udp dport 69 accept")
    with lab.client.socket(socket.AF_INET, socket.SOCK_DGRAM) as a, lab.vm.socket(socket.AF_INET, socket.SOCK_DGRAM) as b, \
            lab.vm.socket(socket.AF_INET, socket.SOCK_DGRAM) as c:
        b.bind((VM, 69))
        c.bind((VM, 0))
        a.sendto(b"\0\1name\0octet\0", (to, 69))
        peer = b.recvfrom(100)[1]
        carry(lab, tools)
        lab.lead(2)
        c.sendto(b"\0\3\0\1data", peer)
        data, where = a.recvfrom(100)
        assert data.endswith(b"data") and where[0] == to
        a.sendto(b"\0\4\0\1", where)
        assert c.recvfrom(100)[0] == b"\0\4\0\1"
        lab.lead(1)


# ---- whatever a table may hold ----

def test_random_tables(lab):
    """1,000 of them: dumped or learnt from events, applied, changed meanwhile, settled; the other kernel has what was asked for,
    and nothing when they end. A seed that fails is printed with the command that repeats it."""
    for fw in (lab.fw1, lab.fw2):
        load(fw, forward="ct label 9 accept")
    seed = int(os.environ.get("VMFERRY_TEST_SEED", time.time_ns() & 0xffffffff))
    said = lab.fw1.exec(BUILD / "tests/host/ct-random", seed, 1000, f"/run/netns/{lab.fw2.name}", limit=300)
    assert said == "1000 tables, 0 differ\n"
