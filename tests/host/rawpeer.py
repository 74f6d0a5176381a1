#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""The other end of a migration, by hand: says what no vmferry would say.

As a module: Stream and Peer are a source's end of `vmferry receive` (docs/protocol.md); batch() makes connection records.
As a program (rawpeer.py SCRIPT.json): a target, for an exec: destination, that plays a script; see Target.
"""

import contextlib
import json
import os
import random
import select
import socket
import struct
import sys
import threading
import zlib

AUTH = b"\0AUTH ANONYMOUS 616e6f6e796d6f7573\r\nBEGIN\r\n"  # as libsystemd says it
PATH, INTERFACE = "/org/vmferry/peer", "org.vmferry.Peer1"
CALL, RETURN, ERROR, SIGNAL = 1, 2, 3, 4
FIELDS = {1: ("path", "o"), 2: ("interface", "s"), 3: ("member", "s"), 4: ("error", "s"), 5: ("reply", "u"),
          6: ("destination", "s"), 7: ("sender", "s"), 8: ("signature", "g")}  # fmt: skip
FIXED = {"y": "B", "b": "I", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d"}
ALIGN = {"y": 1, "g": 1, "v": 1, "n": 2, "q": 2, "x": 8, "t": 8, "d": 8, "(": 8, "{": 8}


def new_id():
    return "%032x" % random.getrandbits(128)


# ---- D-Bus, little-endian ----


def one(signature):
    """The first complete type of a signature."""
    if signature[0] == "a":
        return "a" + one(signature[1:])
    depth = 0
    for i, c in enumerate(signature):
        depth += (c in "({") - (c in ")}")
        if depth == 0:
            return signature[: i + 1]


def types(signature):
    while signature:
        yield (first := one(signature))
        signature = signature[len(first) :]


def variant(value):
    """A value's own signature; ("u", 5) says it."""
    if isinstance(value, tuple):
        return value
    kind = {str: "s", bool: "b", int: "t", list: "as", bytes: "ay"}[type(value)]
    return kind, value


class Writer:
    def __init__(self):
        self.data = bytearray()

    def pad(self, n):
        self.data += bytes(-len(self.data) % n)

    def put(self, signature, value):
        kind = signature[0]
        self.pad(ALIGN.get(kind, 4))
        if kind in FIXED:
            self.data += struct.pack("<" + FIXED[kind], value)
        elif kind in "so":
            raw = value if isinstance(value, bytes) else value.encode()
            self.data += struct.pack("<I", len(raw)) + raw + b"\0"
        elif kind == "g":
            self.data += bytes([len(value)]) + value.encode() + b"\0"
        elif kind == "v":
            inner, value = variant(value)
            self.put("g", inner)
            self.put(inner, value)
        elif isinstance(value, bytes):
            self.data += struct.pack("<I", len(value)) + value
        elif kind == "a":
            items = value.items() if isinstance(value, dict) else value
            at = len(self.data)
            self.data += bytes(4)
            self.pad(ALIGN.get(signature[1], 4))
            begin = len(self.data)
            for item in items:
                self.put(signature[1:], item)
            struct.pack_into("<I", self.data, at, len(self.data) - begin)
        else:
            for inner, item in zip(types(signature[1:-1]), value, strict=True):
                self.put(inner, item)


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, n):
        self.at += n
        if self.at > len(self.data):
            raise EOFError
        return self.data[self.at - n : self.at]

    def pad(self, n):
        self.at += -self.at % n

    def get(self, signature):
        kind = signature[0]
        self.pad(ALIGN.get(kind, 4))
        if kind in FIXED:
            value = struct.unpack("<" + FIXED[kind], self.take(struct.calcsize(FIXED[kind])))[0]
            return bool(value) if kind == "b" else value
        if kind in "sog":
            n = self.take(1)[0] if kind == "g" else struct.unpack("<I", self.take(4))[0]
            return self.take(n + 1)[:-1].decode()
        if kind == "v":
            return self.get(self.get("g"))
        if kind == "a":
            n = struct.unpack("<I", self.take(4))[0]
            self.pad(ALIGN.get(signature[1], 4))
            end, items = self.at + n, []
            while self.at < end:
                items.append(self.get(signature[1:]))
            return dict(items) if signature[1] == "{" else items
        return tuple(self.get(inner) for inner in types(signature[1:-1]))


def message(kind, serial, signature="", *values, flags=0, **fields):
    body = Writer()
    for inner, value in zip(types(signature), values, strict=True):
        body.put(inner, value)
    if signature:
        fields["signature"] = signature
    codes = {name: (code, inner) for code, (name, inner) in FIELDS.items()}
    head = Writer()
    head.data += struct.pack("<cBBBII", b"l", kind, flags, 1, len(body.data), serial)
    head.put("a(yv)", [(codes[name][0], (codes[name][1], value)) for name, value in fields.items()])
    head.pad(8)
    return bytes(head.data + body.data)


def method(member, serial, signature="", *values, path=PATH, interface=INTERFACE):
    return message(CALL, serial, signature, *values, path=path, interface=interface, member=member)


# ---- a stream ----


class Refused(Exception):
    """An error answer: its first line, and the hint after it."""

    def __init__(self, name, text):
        super().__init__(f"{name}: {text}")
        self.name = name
        self.text, _, self.hint = text.partition("\n")


class Closed(Exception):
    pass


class Stream:
    """Bytes and messages over a pair of descriptors; every wait has its limit."""

    def __init__(self, rd, wr, limit=60):
        self.rd, self.wr, self.limit = rd, wr, limit
        self.data, self.serial = b"", 0

    def send(self, data):
        try:
            while data:
                data = data[os.write(self.wr, data) :]
        except OSError as e:
            raise Closed from e

    def more(self):
        if not select.select([self.rd], [], [], self.limit)[0]:
            raise TimeoutError("nothing comes")
        try:
            data = os.read(self.rd, 65536)
        except ConnectionResetError as e:
            raise Closed from e
        if not data:
            raise Closed
        self.data += data

    def line(self):
        while b"\n" not in self.data:
            self.more()
        line, self.data = self.data.split(b"\n", 1)
        return line.decode()

    def exactly(self, n):
        while len(self.data) < n:
            self.more()
        taken, self.data = self.data[:n], self.data[n:]
        return taken

    def wait_closed(self):
        """Read to the end. Return: whether the other side has ended it within the limit."""
        try:
            while True:
                self.more()
        except Closed:
            return True
        except TimeoutError:
            return False

    def receive(self):
        """A message: a dict with "kind", "serial", the header's fields, "body" (list)."""
        head = self.exactly(16)
        _, kind, _, _, size, serial, fields = struct.unpack("<cBBBIII", head)
        begin = 16 + (fields + 7 & ~7)
        read = Reader(head + self.exactly(begin - 16 + size))
        read.at = 12
        found = {FIELDS[code][0]: value for code, value in read.get("a(yv)")}
        read.at = begin
        body = [read.get(inner) for inner in types(found.get("signature", ""))]
        return found | {"kind": kind, "serial": serial, "body": body}

    def next_serial(self):
        self.serial += 1
        return self.serial


class Peer(Stream):
    """A source's end of a stream to a host's `vmferry receive`, or (direct) to a keeper's peer socket.

    @line: the first line, if it is to be another one; @bus: go on to D-Bus
    """

    def __init__(self, host, vm, id=None, line=None, bus=True, direct=False, limit=60):
        self.vm, self.id = vm, id or new_id()
        if direct:
            self.process = None
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(str(host.runtime / vm / "peer"))
            super().__init__(self.socket.fileno(), self.socket.fileno(), limit)
        else:
            self.process = host.popen("vmferry", "receive", stdin=-1, stdout=-1)
            super().__init__(self.process.stdout.fileno(), self.process.stdin.fileno(), limit)
        with contextlib.suppress(Closed):  # refused before it was read: there is an answer
            self.send((f"vmferry/1 peer {vm} {self.id} -\n".encode()) if line is None else line)
        if bus:
            answer = self.line()
            if answer != "vmferry/1 ok -":
                raise Refused("line", answer.removeprefix("vmferry/1 error ").replace("\t", "\n"))
            self.authenticate()

    def authenticate(self):
        self.send(AUTH)
        assert self.line().startswith("OK ")

    def call(self, member, signature="", *values, raw=None, **fields):
        """The answer's body; raises Refused. The other side's pings are answered meanwhile."""
        serial = self.next_serial()
        self.send(raw or method(member, serial, signature, *values, **fields))
        while True:
            m = self.receive()
            if m["kind"] == CALL:
                self.send(message(RETURN, self.next_serial(), reply=m["serial"]))
            elif m.get("reply") == serial and m["kind"] == RETURN:
                return m["body"]
            elif m.get("reply") == serial:
                raise Refused(m["error"], m["body"][0] if m["body"] else "")

    def hello(self, **change):
        cookie = {"version": 1, "host_id": "evil.1", "host_name": "evil", "vm": self.vm, "id": self.id} | change
        return self.call("Hello", "a{sv}", {k: v for k, v in cookie.items() if v is not None})[0]

    def prepare(self, **cookie):
        return self.call("Prepare", "a{sv}", {k: v for k, v in cookie.items() if v is not None})[0]

    def outcome(self, id=None):
        return self.call("Outcome", "s", id or self.id)[0]

    def close(self):
        if self.process:
            self.process.stdin.close()
            self.process.wait(60)
            self.process.stdout.close()
        else:
            self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


# ---- connection records; docs/wire.md ----


def record(source, destination, sport=1234, dport=80):
    """A TCP connection, established."""
    tuple_ = socket.inet_aton(source) + socket.inet_aton(destination) + struct.pack(">HH", sport, dport)
    return bytes([0, 6]) + tuple_ + struct.pack(">HI", 0xE, 432000) + bytes([3, 0x7A, 0x33, 0x23])


def batch(*records):
    data = b"".join(records)
    head = b"VFCT\1\0\0\0" + struct.pack(">II", len(records), len(data))
    return head + struct.pack(">I", zlib.crc32(head + data)) + data


# ---- a target that lies ----


class Target:
    """Plays a script, a JSON object; every member may be left out:

    line      answer to the first line ("silence", "close", or text; default: ok)
    hello, prepare, finish, outcome, delta, abort
              answer to a call: cookie members that replace those of an honest answer (null: left out), or
              "silence", "close", "garbage", "huge" (2 MiB), "truncated", "error", "wrong" (another type)
    listen    address: a proof listener that answers as it should, and a data port that accepts and says nothing
    data      token to answer on a data stream; the stream is then swallowed, QEMU's return path closed in order; or "silence"
    loads     false: the return path stays open, as if the guest's state were never loaded
    receiving whether Receiving is sent when Prepare has been answered
    log       texts to send as Log signals after Hello
    """

    def __init__(self, script):
        self.script = script
        self.stream = Stream(0, 1, limit=120)
        self.kept = []
        self.id = self.vm = None

    def listener(self, answer):
        s = socket.create_server((self.script["listen"], 0), backlog=16)

        def serve():
            while True:
                client, _ = s.accept()
                if answer:
                    client.sendall(answer.encode())
                    client.close()
                else:
                    self.kept.append(client)  # accepted, never read

        threading.Thread(target=serve, daemon=True).start()
        return s.getsockname()[1]

    def honest(self, member):
        cookie = {
            "Hello": {"version": 1, "host_id": "fake.1", "host_name": "fake", "conntrack": True},
            "Prepare": {"token": "0" * 32, "data_socket": "/nonexistent", "qemu_version": "10.0.0"},
            "Finish": {"id": self.id, "outcome": "never", "alive": False, "reason": "a fake"},
            "Outcome": {"id": self.id, "outcome": "never", "alive": False, "reason": "a fake"},
        }[member]
        if "listen" in self.script and member == "Hello":
            token = new_id()
            cookie |= {"address": self.script["listen"], "port": self.listener(token), "token": token}
        if "listen" in self.script and member == "Prepare":
            cookie |= {"address": self.script["listen"], "port": self.listener(None)}
        return cookie

    def bad(self, how, serial):
        if how == "close":
            sys.exit(0)
        if how == "garbage":
            return b"HTTP/1.1 400 Bad Request\r\n\r\n" * 100
        if how == "huge":
            return message(RETURN, self.stream.next_serial(), "ay", bytes(2 << 20), reply=serial)
        if how == "error":
            return message(ERROR, self.stream.next_serial(), "s", "no\x1b[2J\x07 way\nforged hint\r\n", reply=serial,
                           error="org.vmferry.Error.Failed")  # fmt: skip
        if how == "wrong":
            return message(RETURN, self.stream.next_serial(), "s", "what?", reply=serial)
        if how == "truncated":
            self.stream.send(message(RETURN, self.stream.next_serial(), "s", "x" * 1000, reply=serial)[:-500])
            sys.exit(0)
        return b""  # silence

    def reply(self, call):
        member, serial = call["member"], call["serial"]
        change = self.script.get(member.lower(), {})
        if isinstance(change, str):
            self.stream.send(self.bad(change, serial))
        elif member in ("Hello", "Prepare", "Finish", "Outcome"):
            cookie = {k: v for k, v in (self.honest(member) | change).items() if v is not None}
            self.stream.send(message(RETURN, self.stream.next_serial(), "a{sv}", cookie, reply=serial))
        else:
            self.stream.send(message(RETURN, self.stream.next_serial(), reply=serial))
        if member == "Hello":
            for text in self.script.get("log", []):
                self.signal("Log", "is", 0, text)
        if member == "Prepare" and self.script.get("receiving"):
            self.signal("Receiving")

    def signal(self, member, signature="", *values):
        self.stream.send(message(SIGNAL, self.stream.next_serial(), signature, *values, path=PATH, interface=INTERFACE,
                                 member=member))  # fmt: skip

    def swallow(self):
        if self.script.get("loads", True):
            self.stream.send(struct.pack(">HHI", 1, 4, 0))  # MIG_RP_MSG_SHUT, all is well
        while os.read(0, 1 << 20):
            pass

    def run(self):
        words = self.stream.line().split()
        kind, self.vm, self.id = words[1:4]
        answer = self.script.get("line", "ok")
        if answer == "silence":
            self.stream.wait_closed()
        if kind == "data" and self.script.get("data") == "silence":
            self.stream.wait_closed()
        if kind == "data":
            self.stream.send(f"vmferry/1 ok {self.script.get('data', '-')}\n".encode())
            return self.swallow()
        if answer == "close":
            return
        self.stream.send(b"vmferry/1 ok -\n" if answer == "ok" else answer.encode())
        while self.stream.line() != "BEGIN\r":
            pass
        self.stream.send(b"OK %s\r\n" % (b"0" * 32))
        while True:
            call = self.stream.receive()
            if call["kind"] == CALL:
                self.reply(call)


def main():
    with open(sys.argv[1]) as f:
        target = Target(json.load(f))
    try:
        target.run()
    except (Closed, TimeoutError, OSError):
        pass


if __name__ == "__main__":
    main()
