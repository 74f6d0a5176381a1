# SPDX-License-Identifier: GPL-2.0-or-later
"""A Cilium agent as far as its connection tracking table goes: its API on a UNIX socket, a dict for its table."""
import contextlib
import http.server
import socket
import socketserver
import struct
import threading
import time
import urllib.parse

HEADER = "Cilium-Conntrack-Export-Version"
KEY = struct.Struct("<4s4s2s2sBB")  # destination, source, ports, protocol, flags
VALUE = struct.Struct("<QQQQIH2sBBIII")  # reserved, backend, packets, bytes, lifetime, flags, rev_nat, tx, rx, identity, reports
OUT, IN = 0, 1
ESTABLISHED = 0x10


def key(src, dst, sport, dport, protocol=6, flags=OUT):
    return KEY.pack(socket.inet_aton(dst), socket.inet_aton(src), struct.pack(">H", dport), struct.pack(">H", sport), protocol, flags)


def value(lifetime=8000, flags=ESTABLISHED, backend=0, rev_nat=0, identity=0, packets=0, count=0, tx=2, rx=2, reports=(0, 0), reserved=0):
    return VALUE.pack(reserved, backend, packets, count, lifetime, flags, struct.pack(">H", rev_nat), tx, rx, identity, *reports)


def lifetime(entry):
    return VALUE.unpack(entry)[4]


def with_lifetime(entry, seconds):
    return entry[:32] + struct.pack("<I", seconds) + entry[36:]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def address_string(self):
        return "unix"

    def answer(self, status, body=b"", version=None):
        self.send_response(status)
        if version is not None:
            self.send_header(HEADER, version)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        agent = self.server.agent
        assert url.path == "/v1/conntrack/export", self.path
        address = urllib.parse.parse_qs(url.query)["ip4"][0]
        agent.requests.append(("export", address))
        agent.free.wait()
        self.answer(agent.status, agent.cut(agent.export(address)), agent.version)

    def do_POST(self):
        agent = self.server.agent
        assert self.path == "/v1/conntrack/import", self.path
        body = self.rfile.read(int(self.headers["Content-Length"]))
        agent.requests.append(("import", len(body)))
        agent.free.wait()
        if self.headers.get(HEADER, "1") != "1" or len(body) % 68:
            return self.answer(400)
        if agent.status == 200:
            agent.take(body)
        return self.answer(agent.status)


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        """A client that went away."""


class Agent:
    """version: of the header of an export, None: no header; status: what it answers; free: clear it, and it hangs."""

    def __init__(self, path):
        self.path, self.table, self.lock = str(path), {}, threading.Lock()
        self.version, self.status, self.requests = "1", 200, []
        self.cut = lambda body: body
        self.free = threading.Event()
        self.free.set()
        self.server = Server(self.path, Handler)
        self.server.agent = self
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def put(self, entry_key, entry):
        with self.lock:
            self.table[entry_key] = (entry, time.monotonic() + lifetime(entry))

    def remove(self, entry_key):
        with self.lock:
            del self.table[entry_key]

    def now(self):
        """The table as it would be exported, whole."""
        with self.lock:
            return {k: with_lifetime(v, max(0, round(until - time.monotonic()))) for k, (v, until) in self.table.items()}

    def export(self, address):
        raw = socket.inet_aton(address)
        return b"".join(k + v for k, v in self.now().items() if raw in (k[:4], k[4:8]))

    def take(self, body):
        for at in range(0, len(body), 68):
            self.put(body[at:at + 14], body[at + 14:at + 68])

    def close(self):
        self.free.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@contextlib.contextmanager
def agents(directory, *names):
    made = [Agent(directory / f"{name}.sock") for name in names]
    try:
        yield made
    finally:
        for agent in made:
            agent.close()
