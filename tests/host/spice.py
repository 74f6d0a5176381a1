# SPDX-License-Identifier: GPL-2.0-or-later
"""As much of a SPICE client as a migration needs: the main channel (spice-protocol: enums.h, protocol.h)."""

import hashlib
import os
import struct
import subprocess
import time

MIGRATE_BEGIN, INIT, MIGRATE_END = 101, 103, 112  # from the server
SET_ACK, PING = 3, 4
ACK_SYNC, PONG, MIGRATE_CONNECTED = 1, 3, 102  # from the client
SEMI_SEAMLESS = 1


def certificate(directory, subject):
    """A server's, signed by itself, where a definition's tls-directory may point."""
    directory.mkdir()
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", subject,
                    "-keyout", directory / "server-key.pem", "-out", directory / "server-cert.pem"], check=True, stderr=subprocess.DEVNULL)
    (directory / "ca-cert.pem").write_text((directory / "server-cert.pem").read_text())
    for path in (directory, *directory.iterdir()):
        path.chmod(0o755)


def mask(data, seed):
    """MGF1 of RFC 8017 with SHA-1, over data."""
    stream = b"".join(hashlib.sha1(seed + struct.pack(">I", i)).digest() for i in range(len(data) // 20 + 1))
    return bytes(a ^ b for a, b in zip(data, stream))


def encrypt(key, text):
    """RSA-OAEP with SHA-1; @key: SubjectPublicKeyInfo of 1024 bits with the exponent 65537, as SPICE sends it"""
    size, seed = 128, os.urandom(20)
    data = hashlib.sha1(b"").digest() + bytes(size - len(text) - 42) + b"\1" + text
    data = mask(data, seed)
    block = b"\0" + mask(seed, data) + data
    return pow(int.from_bytes(block, "big"), 65537, int.from_bytes(key[-5 - size : -5], "big")).to_bytes(size, "big")


class Spice:
    """The main channel over a connected socket."""

    def __init__(self, s, session=0):
        self.socket, self.serial = s, 0
        s.sendall(b"REDQ" + struct.pack("<IIIIBBIIII", 2, 2, 22, session, 1, 0, 0, 1, 18, SEMI_SEAMLESS))
        magic, _, _, size = struct.unpack("<4sIII", self.read(16))
        reply = self.read(size)
        assert magic == b"REDQ" and reply[:4] == bytes(4), reply
        s.sendall(encrypt(reply[4:166], b"\0"))
        assert self.read(4) == bytes(4)

    def read(self, n):
        data = b""
        while len(data) < n:
            more = self.socket.recv(n - len(data))
            assert more, "the server has closed the channel"
            data += more
        return data

    def send(self, kind, data=b""):
        self.serial += 1
        self.socket.sendall(struct.pack("<QHII", self.serial, kind, len(data), 0) + data)

    def wait(self, wanted):
        """The contents of the next message of a kind; others are answered as they must be."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            _, kind, size, _ = struct.unpack("<QHII", self.read(18))
            data = self.read(size)
            if kind == SET_ACK:
                self.send(ACK_SYNC, data[:4])
            elif kind == PING:
                self.send(PONG, data[:12])
            if kind == wanted:
                return data
        raise TimeoutError(f"no message {wanted}")

    def close(self):
        self.socket.close()


def destination(data):
    """(host, port) of MIGRATE_BEGIN."""
    port, _, size, at = struct.unpack_from("<HHII", data)
    return data[at : at + size].rstrip(b"\0").decode(), port


def tls(data):
    """(TLS port, certificate's subject) of MIGRATE_BEGIN."""
    _, port, _, _, size, at = struct.unpack_from("<HHIIII", data)
    return port, data[at : at + size].rstrip(b"\0").decode()
