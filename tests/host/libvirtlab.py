# SPDX-License-Identifier: GPL-2.0-or-later
"""A libvirtd of a test host's own: private /run, /etc, /var of libvirt, a host name and a host uuid, and domains on it."""

import json
import pathlib
import subprocess
import time
import uuid

from testbed import ACCEL, LIMIT, TREE, Guest, qemu, wait_file

LIBVIRTD = "/usr/sbin/libvirtd"
PLACES = ("/run/libvirt", "/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt")
CACHE = pathlib.Path("/var/cache/vmferry-test/libvirt")  # of what libvirt asks each QEMU there is: seconds
MODULES = "/usr/lib/x86_64-linux-gnu/qemu"  # the installed QEMU's; 10.0 would look there, too, and end when libvirt asks for all it knows

DAEMON_CONF = """
listen_tls = {tls}
listen_tcp = 1
listen_addr = "{address}"
auth_tcp = "none"
auth_unix_rw = "none"
auth_unix_ro = "none"
host_uuid = "{uuid}"
"""
QEMU_CONF = """
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
migration_host = "{address}"
"""
TLS_DAEMON_CONF = """
ca_file = "{pki}/cacert.pem"
cert_file = "{pki}/servercert.pem"
key_file = "{pki}/serverkey.pem"
"""
TLS_QEMU_CONF = """
migrate_tls_x509_cert_dir = "{pki}"
migrate_tls_x509_verify = 1
"""
# What libvirt's TLS has and what QEMU's has.
KEYS = ("cacert.pem", "servercert.pem", "serverkey.pem", "clientcert.pem", "clientkey.pem")
QEMU_KEYS = ("ca-cert.pem", "server-cert.pem", "server-key.pem", "client-cert.pem", "client-key.pem")
DOMAIN = """<domain type='{type}'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <metadata>{metadata}</metadata>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initrd}</initrd>
    <cmdline>{append}</cmdline>
  </os>
  <features><acpi/></features>
  {cpu}
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>{emulator}</emulator>
    <controller type='usb' model='none'/>
    <interface type='network'>
      <mac address='{mac}'/>
      <source network='lan'/>
      {filter}
      <model type='virtio'/>
      <rom enabled='no'/>
    </interface>
    <serial type='file'><source path='{console}'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <memballoon model='none'/>
    {disks}
  </devices>
</domain>
"""
DISK = """<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{file}'/><target dev='{name}' bus='virtio'/></disk>"""
NETWORK = "<network><name>lan</name><forward mode='bridge'/><bridge name='br0'/></network>"
METADATA = "<v:vm xmlns:v='urn:vmferry:domain:1'>%s</v:vm>"
HOOK = """#!/bin/sh
echo "$@" >>{log}
exec {enter} {hook} "$@"
"""
SCRIPT = """set -e
for place in {places}; do
    mkdir -p $place
    mount --bind {dir}$place $place
done
mkdir -p /var/cache/libvirt {cache}
mount --bind {cache} /var/cache/libvirt
mkdir {dir}/empty
mount --bind {dir}/empty {modules} 2>/dev/null || true
mount --bind {dir}/passwd /etc/passwd
mount --bind {dir}/group /etc/group
hostname {name}
exec {subreaper} {libvirtd} --listen --config {dir}/libvirtd.conf --pid-file {dir}/pid --timeout 0
"""

# ssh for a libvirt elsewhere: what it runs here has to see this libvirtd's own /run.
SSH = """#!/bin/bash
exec ssh -F {config} "${{@:1:$#-1}}" "nsenter --mount=/proc/$(cat {dir}/pid)/ns/mnt -- ${{@: -1}}"
"""

# libvirt waits for the end of a QEMU that it ended; here this reaps it, at once, in place of a first process that is slow.
SUBREAPER = """#!/usr/bin/python3
import ctypes, os, sys
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
child = os.spawnvp(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
while os.wait()[0] != child:
    pass
"""


def domain_xml(name, guest, memory=128, addresses=(), console="/dev/null", filtered=(), disks=()):
    """@addresses: what its metadata says, @filtered: what its network filter says, @disks: paths of qcow2 images: vda, vdb"""
    parameters = "".join(f"<parameter name='IP' value='{a}'/>" for a in filtered)
    given = "".join(f"<v:address>{a}</v:address>" for a in addresses)
    return DOMAIN.format(
        type="kvm" if ACCEL == "kvm" else "qemu", name=name, memory=memory, kernel=guest.kernel, initrd=guest.initrd, append=guest.append,
        emulator=qemu(), mac=guest.mac, console=console, cpu="<cpu mode='host-passthrough'/>" if ACCEL == "kvm" else "",
        disks="".join(DISK.format(file=file, name=f"vd{'abc'[i]}") for i, file in enumerate(disks)), metadata=METADATA % given if given else "", filter=f"<filterref filter='any'>{parameters}</filterref>" if filtered else "")


class Libvirt:
    """libvirtd on a host of the testbed; virsh finds it by LIBVIRT_DEFAULT_URI, which every command there has."""

    def __init__(self, host, tls=False):
        """@tls: its URI is qemu+tls://, with keys of an authority of this testbed"""
        self.host, self.dir = host, host.dir / "libvirt"
        self.pki = host.bed.dir / "pki" / host.name
        for place in PLACES:
            (self.dir / place[1:]).mkdir(parents=True)
        self.remote = f"qemu+tls://{host.address}/system?pkipath={self.pki}" if tls else f"qemu+tcp://{host.address}/system"
        self.write_files(tls)
        self.daemon = host.popen("unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", self.script(),
                                 stderr=(self.dir / "stderr").open("w"))
        self.wait_ready()

    def wait_ready(self):
        end = time.monotonic() + LIMIT
        while self.virsh("list", check=False).returncode != 0:
            assert self.daemon.poll() is None and time.monotonic() < end, (self.dir / "stderr").read_text()
        self.virsh("net-create", "/dev/stdin", input=NETWORK)
        self.virsh("nwfilter-define", "/dev/stdin", input="<filter name='any'/>")

    def make_keys(self):
        """One certificate for both roles, by the authority that the first of the hosts makes."""
        authority = self.pki.parent / "ca.pem"
        new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2".split()
        self.pki.mkdir(parents=True)
        if not authority.exists():
            subprocess.run([*new, "-subj", "/CN=authority", "-keyout", f"{authority}.key", "-out", authority, "-addext",
                            "keyUsage=critical,keyCertSign"], check=True, capture_output=True)
        key, cert = self.pki / "serverkey.pem", self.pki / "servercert.pem"
        subprocess.run([*new, "-CA", authority, "-CAkey", f"{authority}.key", "-subj", f"/CN={self.host.name}", "-keyout", key, "-out", cert,
                        "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "keyUsage=critical,digitalSignature,keyEncipherment",
                        "-addext", "extendedKeyUsage=serverAuth,clientAuth", "-addext", f"subjectAltName=IP:{self.host.address},DNS:{self.host.name}.{self.host.bed.prefix}"],
                       check=True, capture_output=True)
        for i, path in enumerate((authority, cert, key, cert, key)):
            for name in {KEYS[i], QEMU_KEYS[i]} - {path.name}:
                (self.pki / name).symlink_to(path)

    def write_files(self, tls):
        d = self.dir
        if tls:
            self.make_keys()
        for path, text, more in (("libvirtd.conf", DAEMON_CONF, TLS_DAEMON_CONF), ("etc/libvirt/qemu.conf", QEMU_CONF, TLS_QEMU_CONF)):
            text = text + more if tls else text
            (d / path).write_text(text.format(address=self.host.address, uuid=uuid.uuid4(), tls=int(tls), pki=self.pki))
        hook = d / "etc/libvirt/hooks/qemu"
        hook.parent.mkdir()
        hook.write_text(HOOK.format(log=d / "hook.log", enter=self.host.enter, hook=TREE / "data/libvirt-hook-qemu"))
        hook.chmod(0o755)
        for name, line in (("passwd", "libvirt-qemu:x:64055:64055::/nonexistent:/bin/false"), ("group", "libvirt-qemu:x:64055:")):
            (d / name).write_text(pathlib.Path(f"/etc/{name}").read_text() + line + "\n")

    def script(self):
        (self.dir / "subreaper").write_text(SUBREAPER)
        (self.dir / "subreaper").chmod(0o755)
        return SCRIPT.format(places=" ".join(PLACES), cache=CACHE, modules=MODULES, dir=self.dir, subreaper=self.dir / "subreaper",
                             name=f"{self.host.name}.{self.host.bed.prefix}", libvirtd=LIBVIRTD)

    def by_ssh(self, source):
        """This libvirt's URI for @source, a Host that logs in here by ssh: libvirt's virt-ssh-helper at the far end."""
        script = self.dir / f"ssh-from-{source.name}"
        script.write_text(SSH.format(config=source.ssh_config, dir=self.dir))
        script.chmod(0o755)
        return f"qemu+ssh://{self.host.name}/system?command={script}&proxy=native"

    def virsh(self, *words, check=True, **more):
        return self.host.run("virsh", "-q", *words, check=check, **more)

    def start(self, name="web1", guest=None, memory=128, addresses=(), disks=()):
        """Start a domain, wait until its guest's servers are up."""
        guest = guest or Guest()
        xml = self.dir / f"{name}.xml"
        console = self.host.bed.dir / f"{name}.console"
        xml.write_text(domain_xml(name, guest, memory, addresses, console, disks=disks))
        self.virsh("create", xml)
        wait_file(console, "READY")
        self.host.bed.flush_switch()

    def know(self, *addresses, name="web1"):
        """What the domain's metadata says of its addresses."""
        words = ("--set", f"<vm>{''.join(f'<address>{a}</address>' for a in addresses)}</vm>") if addresses else ("--remove",)
        self.virsh("metadata", name, "urn:vmferry:domain:1", "--key", "vmferry", "--live", *words)

    def lease(self, *addresses, guest=None):
        """What libvirt's DHCP server says it gave to a guest, in the file that its helper for dnsmasq writes."""
        path = self.dir / "var/lib/libvirt/dnsmasq/br0.status"
        path.parent.mkdir(exist_ok=True)
        entries = [{"ip-address": a, "mac-address": (guest or Guest()).mac, "expiry-time": int(time.time()) + 3600} for a in addresses]
        path.write_text(json.dumps(entries))

    def state(self, name="web1"):
        """domstate's word, or None where there is no such domain."""
        done = self.virsh("domstate", name, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    def hmp(self, command, name="web1"):
        return self.virsh("qemu-monitor-command", name, "--hmp", command).stdout
