# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU driven by a minimal script over QMP, without vmferry: what tests contrast with, and the bench compares with."""

import json
import os
import select
import socket
import subprocess
import time

from testbed import ACCEL, CPU, LIMIT, qemu


class Qmp:
    """One connection; events are kept until they are waited for."""

    def __init__(self, sock):
        self.sock, self.buffer, self.events = sock, b"", []
        self.read(lambda m: "QMP" in m)
        self("qmp_capabilities")

    def read(self, wanted, limit=LIMIT):
        """Messages until one is wanted; events on the way are kept."""
        end = time.monotonic() + limit
        while True:
            while b"\n" in self.buffer:
                line, self.buffer = self.buffer.split(b"\n", 1)
                message = json.loads(line)
                if wanted(message):
                    return message
                if "event" in message:
                    self.events.append(message)
            if not select.select([self.sock], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError("QMP: no answer")
            data = self.sock.recv(65536)
            if not data:
                raise EOFError("QMP: QEMU is gone")
            self.buffer += data

    def __call__(self, command, send_fd=None, **arguments):
        arguments = {k.replace("_", "-"): v for k, v in arguments.items()}
        text = json.dumps({"execute": command, "arguments": arguments}).encode()
        if send_fd is None:
            self.sock.sendall(text)
        else:
            socket.send_fds(self.sock, [text], [send_fd])
        answer = self.read(lambda m: "return" in m or "error" in m)
        if "error" in answer:
            raise RuntimeError(f"QMP: {command}: {answer['error']['desc']}")
        return answer["return"]

    def wait(self, name, limit=LIMIT, **data):
        """The next event of that name and with that data, be it past or to come."""

        def wanted(m):
            return m.get("event") == name and all(m["data"].get(k) == v for k, v in data.items())

        for i, event in enumerate(self.events):
            if wanted(event):
                return self.events.pop(i)
        return self.read(wanted, limit)


def stamp(event):
    t = event["timestamp"]
    return t["seconds"] + t["microseconds"] / 1e6


class RawQemu:
    """A guest on a host, with a tap on br0."""

    taken = 0

    def __init__(self, host, guest, memory=128, incoming=False, program=None, machine="q35", options=()):
        RawQemu.taken += 1
        self.host, self.guest, self.memory, self.tap = host, guest, memory, f"raw{RawQemu.taken}"
        host.netns.ip(f"tuntap add dev {self.tap} mode tap", f"link set dev {self.tap} master br0 up")
        ours, theirs = socket.socketpair()
        words = [
            program or qemu(), "-nodefaults", "-no-user-config", "-display", "none", "-machine", machine, "-accel", ACCEL, "-cpu", CPU,
            "-m", f"{memory}M", "-kernel", guest.kernel, "-initrd", guest.initrd, "-append", guest.append,
            "-netdev", f"tap,id=net0,ifname={self.tap},script=no,downscript=no",
            "-device", f"virtio-net-pci,netdev=net0,mac={guest.mac},romfile=", "-serial", "stdio", "-no-shutdown",
            "-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control", *options,
        ]
        if incoming:
            words += ["-S", "-incoming", "defer"]
        self.process = host.popen(*words, stdout=subprocess.PIPE, pass_fds=[theirs.fileno()])
        theirs.close()
        self.qmp = Qmp(ours)

    def wait_ready(self, limit=LIMIT):
        out, end = b"", time.monotonic() + limit
        while b"READY" not in out:
            if not select.select([self.process.stdout], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError(f"guest not ready:\n{out.decode(errors='replace')}")
            data = os.read(self.process.stdout.fileno(), 4096)
            if not data:
                raise EOFError(f"QEMU ended:\n{out.decode(errors='replace')}")
            out += data
        self.host.bed.flush_switch()
        return self

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.qmp.sock.close()
        self.host.netns.ip(f"link del dev {self.tap}")


def migrate(source, host, channels=1, before_cont=None, target=None, path=None, limit=LIMIT):
    """A live migration over plain TCP, or a UNIX socket's path, by events: start the target unless it is given, copy, cont
    there, end the source.

    Return: the target, and {"wall_ms", "pause_ms" (STOP to RESUME), "transferred"}.
    """
    begin = time.monotonic()
    target = target or RawQemu(host, source.guest, source.memory, incoming=True)
    wanted = {"events": True, "return-path": True, "multifd": channels > 1}  # a guest keeps those it arrived with
    for side in (source, target):
        side.qmp("migrate-set-capabilities", capabilities=[{"capability": k, "state": v} for k, v in wanted.items()])
        side.qmp("migrate-set-parameters", multifd_channels=channels)
    source.qmp("migrate-set-parameters", max_bandwidth=1 << 40)
    target.qmp("migrate-incoming", uri=f"unix:{path}" if path else f"tcp:{host.address}:49152,to=49215")
    port = None if path else target.qmp("query-migrate")["socket-address"][0]["port"]
    source.qmp("migrate", uri=f"unix:{path}" if path else f"tcp:{host.address}:{port}")
    target.qmp.wait("MIGRATION", limit, status="completed")
    if before_cont:
        before_cont()
    target.qmp("cont")
    resumed = target.qmp.wait("RESUME")
    stopped = source.qmp.wait("STOP")
    source.qmp.wait("MIGRATION", status="completed")
    transferred = source.qmp("query-migrate")["ram"]["transferred"]
    source.close()
    return target, {
        "wall_ms": (time.monotonic() - begin) * 1000,
        "pause_ms": (stamp(resumed) - stamp(stopped)) * 1000,
        "transferred": transferred,
    }
