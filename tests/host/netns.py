# SPDX-License-Identifier: GPL-2.0-or-later
"""Network namespaces: made, entered by a thread, and ended with all that runs in them."""

import contextlib
import ctypes
import os
import select
import signal
import subprocess

CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


def command(*words, input=None, check=True):
    """Run a program, return what it printed."""
    done = subprocess.run(words, input=input, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def kill(pids):
    """SIGKILL, and wait until they are gone."""
    fds = []
    for pid in pids:
        try:
            fds.append(os.pidfd_open(pid))
            signal.pidfd_send_signal(fds[-1], signal.SIGKILL)
        except ProcessLookupError:
            pass
    for fd in fds:
        select.select([fd], [], [], 10)
        os.close(fd)


class Namespace:
    def __init__(self, name):
        self.name = name
        self.path = f"/run/netns/{name}"
        command("ip", "netns", "add", name)
        self.inode = os.stat(self.path).st_ino
        self.ip("link set lo up")

    def ip(self, *lines):
        command("ip", "-n", self.name, "-batch", "-", input="\n".join(lines) + "\n")

    def exec(self, *words):
        """The words that run a program in here (with /sys as it is here)."""
        return ["ip", "netns", "exec", self.name, *words]

    @contextlib.contextmanager
    def entered(self):
        """This thread is in here: sockets it makes, /proc/sys/net, children. A socket stays where it was made."""
        with open("/proc/thread-self/ns/net") as old, open(self.path) as new:
            if libc.setns(new.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            try:
                yield self
            finally:
                if libc.setns(old.fileno(), CLONE_NEWNET) != 0:
                    os._exit(125)

    def sysctl(self, values):
        """{"net/ipv4/ip_forward": 1}"""
        with self.entered():
            for name, value in values.items():
                with open("/proc/sys/" + name, "w") as f:
                    f.write(str(value))

    def pids(self):
        """Processes in here, by pid."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{pid}/ns/net").st_ino == self.inode:
                    found.append(int(pid))
        return found

    def delete(self):
        while pids := [pid for pid in self.pids() if pid != os.getpid()]:
            kill(pids)
        command("ip", "netns", "del", self.name, check=False)
