#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams from a client to the test guest (tests/guest/agent.c) that notice when it is moved.

As a program: probe.py STREAM...; a STREAM is KIND,ADDRESS[,NAME=VALUE...]:

    bulk   receive all the time, check every byte (pace=BYTES/s: limit)
    ping   a byte over TCP there and back, every interval=MS (10)
    udp    a datagram there and back, every interval=MS (10)
    hold   count=N (100) TCP connections that say nothing until they are checked

It prints "ready" when all are up, then answers lines on standard input by one line of JSON, a list of streams:
"mark" (forget the gaps so far), "check SECONDS" (see that each stream still gets something new, wait that long at most).

As a module: Probe, which runs it in a namespace.
"""

import errno
import ipaddress
import json
import os
import resource
import select
import socket
import subprocess
import sys
import time

BULK, ECHO, UDP = 7001, 7002, 7003
PERIOD = 65521
now = time.monotonic


class Stream:
    interval = None  # seconds between two sends

    def __init__(self, epoll, address, **options):
        self.epoll, self.address = epoll, address
        self.got, self.gap, self.error = 0, 0.0, None
        self.last = self.fresh = now()
        self.start(**options)

    def connect(self, kind, port):
        s = socket.socket(socket.AF_INET6 if ":" in self.address else socket.AF_INET, kind)
        s.settimeout(30)
        s.connect((self.address, port))
        if kind == socket.SOCK_STREAM:
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        s.setblocking(False)
        return s

    def watch(self, s):
        self.epoll.register(s, select.EPOLLIN)
        streams[s.fileno()] = (self, s)

    def ready(self, s):
        """There is something to read."""
        try:
            if self.receive(s) is False:
                self.fail("closed by the guest")
        except BlockingIOError:
            pass
        except OSError as e:
            self.fail(errno.errorcode[e.errno])
        if self.error and s.fileno() >= 0:
            self.epoll.unregister(s)
            s.close()

    def arrived(self):
        t = now()
        self.gap = max(self.gap, t - self.last)
        self.last = t
        self.got += 1

    def fail(self, why):
        self.error = self.error or why

    def due(self, t):
        """Send, if it is time; return when the next time is."""
        return t + 3600

    def mark(self):
        self.gap, self.last = 0.0, max(self.last, now())

    def check_begin(self):
        self.before = self.got

    def checked(self):
        return self.error is not None or self.got > self.before

    def report(self):
        alive = self.error is None and self.got > self.before
        gap = max(self.gap, 0 if alive else now() - self.last)
        return {"stream": type(self).__name__.lower(), "address": self.address, "alive": alive, "error": self.error,
                "gap_ms": round(gap * 1000, 1), "count": self.got}


class Bulk(Stream):
    pattern = bytes((i * 2654435761 & 0xFFFFFFFF) >> 24 for i in range(PERIOD)) * 9

    def start(self, pace=None):
        self.offset = 0
        self.buffer = memoryview(bytearray(8 * PERIOD))
        s = self.connect(socket.SOCK_STREAM, BULK)
        if pace:
            s.send(b"pace %d\n" % int(pace))
        self.watch(s)

    def receive(self, s):
        n = s.recv_into(self.buffer)
        if n == 0:
            return False
        at = self.offset % PERIOD
        if self.buffer[:n] != memoryview(self.pattern)[at : at + n]:
            self.fail(f"wrong bytes after {self.offset}")
        self.offset += n
        self.arrived()

    def report(self):
        return super().report() | {"bytes": self.offset}


class Ping(Stream):
    def start(self, interval=10):
        self.interval = float(interval) / 1000
        self.socket, self.next, self.waiting = self.connect(socket.SOCK_STREAM, ECHO), 0, False
        self.watch(self.socket)

    def due(self, t):
        if self.error or self.waiting:
            return t + 3600
        if t >= self.next:
            try:
                self.socket.send(b"x")
            except OSError as e:
                self.fail(errno.errorcode[e.errno])
            self.waiting = True
            self.next = t + self.interval
            return t + 3600
        return self.next

    def receive(self, s):
        if not s.recv(64):
            return False
        self.waiting = False
        self.arrived()


class Udp(Stream):
    def start(self, interval=10):
        self.interval = float(interval) / 1000
        self.socket, self.next, self.sent = self.connect(socket.SOCK_DGRAM, UDP), now(), 0
        self.watch(self.socket)

    def due(self, t):
        while t >= self.next and not self.error:
            try:
                self.socket.send(b"%d" % self.sent)
                self.sent += 1
            except OSError:
                pass  # nobody there for a moment
            self.next += self.interval
        return self.next if not self.error else t + 3600

    def ready(self, s):
        try:
            s.recv(64)
            self.arrived()
        except OSError:
            pass

    def report(self):
        return super().report() | {"sent": self.sent, "lost": self.sent - self.got}


class Hold(Stream):
    def start(self, count=100):
        self.sockets = [self.connect(socket.SOCK_STREAM, ECHO) for _ in range(int(count))]
        self.answered, self.dead, self.round = set(), {}, 0
        self.owed = {s: b"" for s in self.sockets}  # what is still to come back; of an earlier check, too
        for s in self.sockets:
            self.watch(s)

    def check_begin(self):
        self.round += 1
        self.answered = set()
        for s in self.sockets:
            try:
                s.send(b"%08d" % self.round)
                self.owed[s] += b"%08d" % self.round
            except OSError as e:
                self.dead[s] = errno.errorcode[e.errno]

    def receive(self, s):
        pass

    def ready(self, s):
        try:
            data = s.recv(64)
            if data and self.owed[s].startswith(data):
                self.owed[s] = self.owed[s][len(data):]
                if not self.owed[s]:
                    self.answered.add(s)
                    self.arrived()
                return
            self.dead[s] = "wrong answer" if data else "closed by the guest"
        except BlockingIOError:
            return
        except OSError as e:
            self.dead[s] = errno.errorcode[e.errno]
        self.epoll.unregister(s)

    def checked(self):
        return len(self.answered) + len(self.dead) >= len(self.sockets)

    def report(self):
        return {"stream": "hold", "address": self.address, "alive": len(self.answered) == len(self.sockets), "held": len(self.sockets),
                "living": len(self.answered), "error": next(iter(self.dead.values()), None)}


KINDS = {"bulk": Bulk, "ping": Ping, "udp": Udp, "hold": Hold}
streams = {}


def make(epoll, text):
    kind, address, *options = text.split(",")
    ipaddress.ip_address(address)
    return KINDS[kind](epoll, address, **dict(option.split("=") for option in options))


def main():
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    epoll = select.epoll()
    everything = [make(epoll, text) for text in sys.argv[1:]]
    epoll.register(0, select.EPOLLIN)
    for stream in everything:
        stream.check_begin()
    announced, check_until = False, now() + 30

    def answer():
        print(json.dumps([stream.report() for stream in everything]), flush=True)

    while True:
        t = now()
        wake = min(stream.due(t) for stream in everything)
        if check_until is not None:
            if all(stream.checked() for stream in everything) or t >= check_until:
                check_until = None
                if announced:
                    answer()
                else:
                    announced = True
                    print("ready", flush=True)
                continue
            wake = min(wake, check_until)
        for fd, _ in epoll.poll(max(0, wake - now())):
            if fd != 0:
                stream, s = streams[fd]
                stream.ready(s)
                continue
            line = os.read(0, 4096).decode().split()
            if not line:
                return
            if line[0] == "mark":
                for stream in everything:
                    stream.mark()
                answer()
            elif line[0] == "check":
                for stream in everything:
                    stream.check_begin()
                check_until = now() + float(line[1])


class Probe:
    """The program above, run by the words that `exec` makes of its own; streams as it takes them."""

    def __init__(self, exec, *streams):
        self.process = subprocess.Popen(
            exec("/usr/bin/python3", __file__, *streams), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline()
        if line != "ready\n":
            self.close()
            raise AssertionError(f"probe: streams did not come up: {streams}")

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def mark(self):
        self.ask("mark")

    def check(self, seconds=5):
        """A list of dicts, one a stream, with "alive" and "gap_ms" (the longest since mark)."""
        return self.ask(f"check {seconds}")

    def assert_alive(self, seconds=5, gap_ms=None):
        found = self.check(seconds)
        assert all(s["alive"] for s in found), found
        assert gap_ms is None or all(s.get("gap_ms", 0) <= gap_ms for s in found), found
        return found

    def close(self):
        """Ends the connections; sends no more."""
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


if __name__ == "__main__":
    main()
