# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypervisors on one machine: a switch, hosts with a strict firewall and an sshd of their own, a client. Needs root.

    switch    br0 --- host a: br0, taps       10.0.0.0/24, fd00::/64: guests and the client
                  --- host b: br0, taps
                  --- client
              mig --- host a: mig0            10.99.0.0/24, fd99::/64: ssh and migration data
                  --- host b: mig0
              (an operator's commands can come from the switch, which has an address on "mig")

Each is a network namespace; each host has its own configuration, runtime and state directory, ssh and host keys.
Everything belongs to one Testbed and goes with it; two may live at once.

VMFERRY_BUILD: build directory (default: build). VMFERRY_TEST_ACCEL: tcg (default) or kvm.
VMFERRY_TEST_QEMU: QEMU program of hosts' host.conf (default: 10.0, which tools/get-qemu10 finds; 7.2 under TCG corrupts
write-heavy guests when it is the source of a live migration).
"""

import contextlib
import ctypes
import functools
import json
import os
import pathlib
import select
import shlex
import shutil
import socket
import subprocess
import tempfile
import time

from netns import Namespace, command, libc
from probe import Probe

TREE = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("VMFERRY_BUILD", TREE / "build")).resolve()
ACCEL = os.environ.get("VMFERRY_TEST_ACCEL", "tcg")
CPU = "host" if ACCEL == "kvm" else "qemu64"
COMMAND_PORT = 7004
LIMIT = 60  # seconds; a wait that takes so long has failed

FIREWALL = """
flush ruleset
table {family} strict {{
    chain forward {{
        type filter hook forward priority 0; policy drop;
        {prelude}
        ct state invalid drop
        ct state established,related accept
        ct state new tcp flags & (fin|syn|rst|ack) == syn accept
        ct state new udp dport {{ 7003 }} accept
        icmp type echo-request accept
        icmpv6 type {{ echo-request, nd-neighbor-solicit, nd-neighbor-advert }} accept
    }}
}}
"""


@functools.cache
def tool(name):
    """What tools/get-qemu10 and tools/make-guest print: a path. They do their work once."""
    return command(str(TREE / "tools" / name)).strip()


def qemu():
    return os.environ.get("VMFERRY_TEST_QEMU", "").split(":")[0] or tool("get-qemu10")


def build_option(name):
    """A Meson option of the build under test."""
    options = json.loads((BUILD / "meson-info" / "intro-buildoptions.json").read_text())
    return next(o["value"] for o in options if o["name"] == name)


def words(**keys):
    """Lines of a configuration file: text in quotes, lists in braces, numbers and booleans bare."""

    def value(v):
        if isinstance(v, bool):
            return str(v).lower()
        if isinstance(v, (list, tuple)):
            return "{ " + ", ".join(map(value, v)) + " }"
        return str(v) if isinstance(v, int) else '"%s"' % str(v).replace("\\", "\\\\").replace('"', '\\"')

    return "".join(f"{key.replace('_', '-')} = {value(v)}\n" for key, v in keys.items() if v is not None)


def section(title, **keys):
    return f"{title} {{\n{words(**keys)}}}\n"


def wait_file(path, text, limit=LIMIT):
    """Wait until a file, which need not be there yet, has the text in it; return all of it."""
    path = pathlib.Path(path)
    notify = libc.inotify_init()
    try:
        libc.inotify_add_watch(notify, os.fsencode(path.parent), ctypes.c_uint32(0x2 | 0x80 | 0x100))  # modify, move, create
        end = time.monotonic() + limit
        while True:
            found = path.read_text(errors="replace") if path.exists() else "(no file)"
            if text in found:
                return found
            if select.select([notify], [], [], 1)[0]:  # a directory that is made anew says nothing
                os.read(notify, 65536)
            if time.monotonic() > end:
                raise TimeoutError(f"no {text!r} in {path}:\n{found[-2000:]}")
    finally:
        os.close(notify)


def wait_until(check, limit=LIMIT):
    """Wait until something is true for which there is nothing to wait on; return it."""
    end = time.monotonic() + limit
    while not (found := check()):
        assert time.monotonic() < end, check
        select.select([], [], [], 0.02)
    return found


class Guest:
    """A test guest's address, and the numbers that follow from it."""

    def __init__(self, number=5):
        self.number = number
        self.ip4, self.ip6 = f"10.0.0.{number}", f"fd00::{number:x}"
        self.mac = f"52:54:00:12:34:{number:02x}"
        self.append = f"console=ttyS0 quiet no_timer_check vmferry.ip4={self.ip4}/24 vmferry.ip6={self.ip6}/64"

    @property
    def kernel(self):
        return tool("make-guest") + "/kernel"

    @property
    def initrd(self):
        return tool("make-guest") + "/initrd"


class Node:
    """A namespace with a command environment: a host, or the operator's desk."""

    def __init__(self, bed, name, namespace):
        self.bed, self.name, self.netns = bed, name, namespace
        self.dir = bed.dir / name
        self.config, self.runtime, self.state = self.dir / "etc", self.dir / "run", self.dir / "lib"
        for path in (self.dir, self.config, self.config / "vms", self.runtime, self.state):
            path.mkdir(mode=0o755)
        self.ssh_config = self.dir / "ssh_config"
        self.env = {
            "PATH": f"{bed.bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.dir),
            "VMFERRY_CONFIG_DIR": str(self.config),
            "VMFERRY_RUNTIME_DIR": str(self.runtime),
            "VMFERRY_STATE_DIR": str(self.state),
            "VMFERRY_SSH": f"ssh -F {self.ssh_config}",
            "LIBVIRT_DEFAULT_URI": f"qemu+unix:///system?socket={self.dir}/libvirt/run/libvirt/libvirt-sock",  # libvirtlab.py
        } | {k: v for k, v in os.environ.items() if k.endswith("SAN_OPTIONS") or k in ("TERM", "VMFERRY_LOG", "VMFERRY_FAULT")}
        self.children = []
        self.make_key()

    def make_key(self):
        key = self.dir / "id"
        command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", str(key))
        self.public_key = key.with_suffix(".pub").read_text().strip()

    def popen(self, *argv, env={}, **kwargs):
        """A process in here; it ends with the testbed at the latest."""
        kwargs.setdefault("stdin", subprocess.DEVNULL)
        child = subprocess.Popen(self.netns.exec(*map(str, argv)), env=self.env | env, **kwargs)
        self.children.append(child)
        return child

    def run(self, *argv, check=True, timeout=LIMIT, env={}, **kwargs):
        """A command in here, to its end; text output captured."""
        kwargs = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | kwargs
        if "input" in kwargs:
            del kwargs["stdin"]
        done = subprocess.run(self.netns.exec(*map(str, argv)), env=self.env | env, timeout=timeout, **kwargs)
        if check and done.returncode != 0:
            raise AssertionError(f"{self.name}: {shlex.join(map(str, argv))}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def vmferry(self, *args, check=True, **kwargs):
        return self.run("vmferry", *args, check=check, **kwargs)

    def vmferry_json(self, *args, check=True, **kwargs):
        """The answer of a command with --json (its last line, where there are several)."""
        done = self.vmferry(*args, "--json", check=check, **kwargs)
        return json.loads(done.stdout) if done.stdout.lstrip()[:1] == "[" else json.loads(done.stdout.strip().split("\n")[-1])

    def processes(self):
        """What runs here beside the testbed's own: {pid: command line}."""
        known = {child.pid for child in self.children}
        found = {}
        for pid in self.netns.pids():
            with contextlib.suppress(OSError):
                line = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if line and pid not in known and not line.startswith("sshd"):
                    found[pid] = line
        return found


class Host(Node):
    """A hypervisor."""

    BASE_LINKS = {"lo", "br0", "uplink", "mig0"}

    def __init__(self, bed, name, number, namespace):
        super().__init__(bed, name, namespace)
        self.address, self.address6 = f"10.99.0.{number}", f"fd99::{number}"
        self.ssh = f"ssh://{name}"
        self.enter = self.dir / "enter"
        self.write_conf()
        self.write_enter()

    def write_conf(self, text="", **keys):
        """host.conf: a test's own keys replace the default ones; sections go into the text."""
        keys = {
            "host_id": f"{self.name}.{self.bed.prefix}",
            "host_name": self.name,
            "migration_address": self.address,
            "binary": qemu(),
        } | keys
        (self.config / "host.conf").write_text(words(**keys) + text)

    def define(self, vm, guest=None, text="", nic={}, **keys):
        """Write a definition: a guest of 128 MiB with one NIC. Keys replace the default ones, None leaves one out."""
        guest = guest or Guest()
        keys = {
            "machine": "q35",
            "cpu": CPU,
            "accel": ACCEL,
            "memory": "128M",
            "binary": qemu(),
            "kernel": guest.kernel,
            "initrd": guest.initrd,
            "append": guest.append,
        } | keys
        nic = {"bridge": "br0", "mac": guest.mac, "addresses": [guest.ip4, guest.ip6]} | nic
        (self.config / "vms" / f"{vm}.vm").write_text(words(**keys) + section("nic net0", **nic) + text)

    def start(self, vm, guest=None, **keys):
        """Define a VM, start it, wait until its servers are up."""
        self.define(vm, guest, **keys)
        self.vmferry("start", vm)
        wait_file(self.runtime / vm / "console.log", "READY")
        self.bed.flush_switch()

    def exec_destination(self, *program):
        """This host as a migration's destination, without ssh; perhaps another program than `vmferry receive`."""
        return " ".join([f"exec:{self.enter}", *(program or ("vmferry", "receive"))])

    def write_enter(self):
        """A command that runs another one on this host, from wherever it is called."""
        settings = "\n".join(f"export {k}={shlex.quote(v)}" for k, v in self.env.items())
        self.enter.write_text(f'#!/bin/sh\n{settings}\nexec {shlex.join(self.netns.exec())} "$@"\n')
        self.enter.chmod(0o755)

    def migrate(self, vm, to, *options, check=True, **kwargs):
        """Move a VM to another host (a Host: by exec:, or a destination's text); return the result, as vmferry tells it."""
        destination = to.exec_destination() if isinstance(to, Host) else to
        result = self.vmferry_json("migrate", vm, destination, *options, check=check, **kwargs)
        assert not check or result["status"] == "completed", result
        return result

    def status(self, vm):
        """One VM's status as JSON; None if there is no such VM here."""
        done = self.vmferry("status", vm, "--json", check=False)
        if done.returncode != 0:
            return None
        found = json.loads(done.stdout)
        return found[0] if isinstance(found, list) else found

    def start_sshd(self):
        key, conf = self.dir / "host_key", self.dir / "sshd_config"
        command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        settings = " ".join(f'{k}="{v}"' for k, v in self.env.items())
        locked = command("getent", "shadow", "root").split(":")[1].startswith("!")
        conf.write_text(
            f"ListenAddress {self.address}\nListenAddress [{self.address6}]\nHostKey {key}\n"
            f"AuthorizedKeysFile {self.dir}/authorized_keys\nStrictModes no\nPidFile none\nUseDNS no\n"
            f"PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            f"UsePAM {'yes' if locked else 'no'}\nSetEnv {settings}\n"
        )
        os.makedirs("/run/sshd", exist_ok=True)
        (self.dir / "authorized_keys").touch()
        # Standard error ends with the last copy of it, so the first line, "Server listening", is what we wait for.
        log = self.dir / "sshd.log"
        with log.open("w") as err:
            self.sshd = self.popen("/usr/sbin/sshd", "-D", "-e", "-f", conf, stderr=err)
        wait_file(log, f"listening on {self.address} ")
        return key.with_suffix(".pub").read_text().split()[:2]

    def authorize(self, public_key, options=""):
        """Let a key in, perhaps with options ('restrict,command="vmferry receive"')."""
        with (self.dir / "authorized_keys").open("a") as f:
            f.write(f"{options} {public_key}".strip() + "\n")

    def conntrack(self, *args):
        """Lines of the host's connection table."""
        return self.run("conntrack", "-L", *args, stderr=subprocess.DEVNULL).stdout.splitlines()

    def cut(self):
        """Take the host off the migration network; heal() brings it back."""
        self.bed.switch.ip(f"link set mig-{self.name} down")

    def heal(self):
        self.bed.switch.ip(f"link set mig-{self.name} up")

    def leftovers(self, *vms):
        """What should not be there any more, as lines: processes, links, listening ports, files in the runtime directory.

        With names: only what is of these VMs.
        """
        mine = [f"/{vm}/" for vm in vms] + [f"guest={vm}," for vm in vms] + [f" {vm} " for vm in vms]
        found = [f"process {pid}: {line}" for pid, line in self.processes().items() if not vms or any(m in line + " " for m in mine)]
        for path in sorted(self.runtime.rglob("*")):
            if not vms or path.relative_to(self.runtime).parts[0] in vms:
                found.append(f"file {path.relative_to(self.dir)}")
        if not vms:
            links = {link["ifname"] for link in json.loads(command("ip", "-n", self.netns.name, "-j", "link"))}
            found += [f"link {name}" for name in sorted(links - self.BASE_LINKS)]
            ports = self.run("ss", "-Hltn").stdout.splitlines()
            found += [f"port {line.split()[3]}" for line in ports if not line.split()[3].endswith(":22")]
        return found

    def wait_clean(self, *vms, limit=LIMIT):
        """Leftovers after what is on its way out had time to go; [] is what one hopes for."""
        end = time.monotonic() + limit
        while (found := self.leftovers(*vms)) and time.monotonic() < end:
            fds = [os.pidfd_open(pid) for pid in self.processes() if os.path.exists(f"/proc/{pid}")]
            select.select(fds, [], [], 0.05)
            for fd in fds:
                os.close(fd)
        return found


class Testbed:
    """with Testbed() as bed: bed.a.start("web1"); bed.a.vmferry("migrate", "web1", bed.b.exec_destination()) ..."""

    __test__ = False  # pytest

    def __init__(self, hosts=("a", "b"), strict=True, sshd=True, ct_events=None):
        """@strict: firewall on every host; @ct_events: nf_conntrack_events there (None: the kernel's own)"""
        self.prefix = f"vf{os.getpid():x}{os.urandom(2).hex()}"
        base = tempfile.gettempdir()
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="vf", dir=base if len(base) <= 24 else "/tmp"))
        self.dir.chmod(0o755)
        self.bin = self.dir / "bin"
        self.bin.mkdir()
        for program in ("cli/vmferry", "companions/vmferry-conntrack", "companions/vmferry-libvirt"):
            (self.bin / program.split("/")[1]).symlink_to(BUILD / "src" / program)
        self.namespaces, self.hosts, self.probes = [], [], []
        try:
            self.build(hosts, strict, sshd, ct_events)
        except BaseException:
            self.close()
            raise

    def namespace(self, name):
        self.namespaces.append(Namespace(f"{self.prefix}-{name}"))
        return self.namespaces[-1]

    def build(self, hosts, strict, sshd, ct_events):
        self.switch = self.namespace("switch")
        bridge = "type bridge stp_state 0 forward_delay 0"
        self.switch.ip(f"link add br0 up {bridge}", f"link add mig up {bridge}",
                       "addr add 10.99.0.254/24 dev mig", "addr add fd99::fe/64 dev mig nodad")
        self.client = self.namespace("client")
        self.plug(self.client, "eth0", "br0", "client")
        self.client.ip("addr add 10.0.0.100/24 dev eth0", "addr add fd00::100/64 dev eth0 nodad")
        self.operator = Node(self, "operator", self.switch)
        for number, name in enumerate(hosts, 1):
            self.hosts.append(self.build_host(name, number, strict, ct_events))
            setattr(self, name, self.hosts[-1])
        if sshd:
            self.build_ssh()

    def plug(self, namespace, link, bridge, port):
        """A cable from a namespace to the switch."""
        namespace.ip(f"link add {link} up type veth peer name {port} netns {self.switch.name}")
        self.switch.ip(f"link set dev {port} master {bridge} up")

    def build_host(self, name, number, strict, ct_events):
        netns = self.namespace(name)
        self.plug(netns, "uplink", "br0", name)
        self.plug(netns, "mig0", "mig", f"mig-{name}")
        netns.ip("link add br0 up type bridge stp_state 0 forward_delay 0", "link set uplink master br0",
                 f"addr add 10.0.0.{200 + number}/24 dev br0", f"addr add 10.99.0.{number}/24 dev mig0",
                 f"addr add fd99::{number}/64 dev mig0 nodad")
        if strict:
            self.build_firewall(netns, ct_events)
        return Host(self, name, number, netns)

    @staticmethod
    def build_firewall(netns, ct_events):
        """Bridged packets pass the host's forward hook; where the kernel cannot do that, the bridge's own."""
        if not os.path.exists("/proc/sys/net/bridge"):
            command("modprobe", "br_netfilter", check=False)
        called = os.path.exists("/proc/sys/net/bridge")
        rules = FIREWALL.format(
            family="inet" if called else "bridge", prelude="" if called else "ether type { arp, 0x8035 } accept"
        )
        command("ip", "netns", "exec", netns.name, "nft", "-f", "-", input=rules)
        settings = {"net/netfilter/nf_conntrack_tcp_loose": 0}
        if called:
            settings |= {"net/bridge/bridge-nf-call-iptables": 1, "net/bridge/bridge-nf-call-ip6tables": 1}
        if ct_events is not None:
            settings["net/netfilter/nf_conntrack_events"] = ct_events
        netns.sysctl(settings)

    def build_ssh(self):
        nodes = [*self.hosts, self.operator]
        known = self.dir / "known_hosts"
        known.write_text("".join(f"{host.name} {' '.join(host.start_sshd())}\n" for host in self.hosts))
        for node in nodes:
            node.ssh_config.write_text(
                "".join(f"Host {h.name}\n HostName {h.address}\n HostKeyAlias {h.name}\n" for h in self.hosts)
                + f"Host *\n User root\n IdentityFile {node.dir}/id\n IdentitiesOnly yes\n IdentityAgent none\n"
                f" UserKnownHostsFile {known}\n GlobalKnownHostsFile none\n StrictHostKeyChecking yes\n LogLevel ERROR\n"
            )
            for host in self.hosts:
                host.authorize(node.public_key)

    def separate(self):
        """The hosts do not reach each other on the migration network, in any protocol; the operator reaches all."""
        for host in self.hosts:
            others = [other for other in self.hosts if other is not host]
            drop = "; ".join(f"ip saddr {o.address} drop; ip6 saddr {o.address6} drop" for o in others)
            host.run("nft", "-f", "-", input="table inet apart { chain in { type filter hook input priority -10; %s; }; }" % drop)

    def flush_switch(self):
        """Forget where addresses are: a fresh guest says nothing that would tell (the firewalls drop its MLD)."""
        self.switch.ip("link set br0 type bridge fdb_flush")

    def connect(self, address, port=COMMAND_PORT, timeout=LIMIT):
        """A TCP connection from the client."""
        with self.client.entered():
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            s = socket.socket(family, socket.SOCK_STREAM)
        s.settimeout(timeout)
        try:
            s.connect((address, port))
        except BaseException:
            s.close()
            raise
        return s

    def ask(self, guest, line, timeout=LIMIT):
        """A command to the guest's agent; the answer without its "ok"."""
        with self.connect(guest.ip4, timeout=timeout) as s:
            s.sendall(line.encode() + b"\n")
            answer = s.makefile().readline().strip()
        if not answer.startswith("ok"):
            raise AssertionError(f"guest: {line}: {answer or 'closed'}")
        return answer[3:]

    def probe(self, *streams):
        """Streams to guests from the client (probe.py), all connected when this returns."""
        self.probes.append(Probe(self.client.exec, *streams))
        return self.probes[-1]

    def logs(self):
        """What there is to read about a failure."""
        text = []
        for host in self.hosts:
            for path in sorted(p for d in (host.runtime, host.state) for p in d.rglob("*")):
                if path.is_file() and path.stat().st_size and (path.suffix == ".log" or path.name in ("history", "stderr", "log")):
                    tail = path.read_bytes()[-3000:].decode(errors="replace").strip()
                    text.append(f"--- {path.relative_to(self.dir)}\n{tail}")
        return "\n".join(text)

    def close(self):
        for probe in self.probes:
            probe.close()
        for namespace in reversed(self.namespaces):
            namespace.delete()
        for node in [*self.hosts, *([self.operator] if hasattr(self, "operator") else [])]:
            for child in node.children:
                child.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
