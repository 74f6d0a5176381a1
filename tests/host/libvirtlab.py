# SPDX-License-Identifier: GPL-2.0-or-later
"""A libvirtd of a test host's own: private /run, /etc, /var of libvirt, a host name and a host uuid, and domains on it."""

import json
import pathlib
import time
import uuid

from testbed import ACCEL, LIMIT, TREE, Guest, qemu, wait_file

LIBVIRTD = "/usr/sbin/libvirtd"
PLACES = ("/run/libvirt", "/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt")
CACHE = pathlib.Path("/var/cache/vmferry-test/libvirt")  # of what libvirt asks each QEMU there is: seconds
MODULES = "/usr/lib/x86_64-linux-gnu/qemu"  # the installed QEMU's; 10.0 would look there, too, and end when libvirt asks for all it knows

DAEMON_CONF = """
listen_tls = 0
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
  </devices>
</domain>
"""
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


def domain_xml(name, guest, memory=128, addresses=(), console="/dev/null", filtered=()):
    """@addresses: what its metadata says, @filtered: what its network filter says"""
    parameters = "".join(f"<parameter name='IP' value='{a}'/>" for a in filtered)
    given = "".join(f"<v:address>{a}</v:address>" for a in addresses)
    return DOMAIN.format(
        type="kvm" if ACCEL == "kvm" else "qemu", name=name, memory=memory, kernel=guest.kernel, initrd=guest.initrd, append=guest.append,
        emulator=qemu(), mac=guest.mac, console=console, cpu="<cpu mode='host-passthrough'/>" if ACCEL == "kvm" else "",
        metadata=METADATA % given if given else "", filter=f"<filterref filter='any'>{parameters}</filterref>" if filtered else "")


class Libvirt:
    """libvirtd on a host of the testbed; virsh finds it by LIBVIRT_DEFAULT_URI, which every command there has."""

    def __init__(self, host):
        self.host, self.dir = host, host.dir / "libvirt"
        for place in PLACES:
            (self.dir / place[1:]).mkdir(parents=True)
        self.remote = f"qemu+tcp://{host.address}/system"
        self.write_files()
        self.daemon = host.popen("unshare", "--mount", "--uts", "--propagation", "private", "sh", "-c", self.script(),
                                 stderr=(self.dir / "stderr").open("w"))
        self.wait_ready()

    def wait_ready(self):
        end = time.monotonic() + LIMIT
        while self.virsh("list", check=False).returncode != 0:
            assert self.daemon.poll() is None and time.monotonic() < end, (self.dir / "stderr").read_text()
        self.virsh("net-create", "/dev/stdin", input=NETWORK)
        self.virsh("nwfilter-define", "/dev/stdin", input="<filter name='any'/>")

    def write_files(self):
        d = self.dir
        (d / "libvirtd.conf").write_text(DAEMON_CONF.format(address=self.host.address, uuid=uuid.uuid4()))
        (d / "etc/libvirt/qemu.conf").write_text(QEMU_CONF.format(address=self.host.address))
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

    def start(self, name="web1", guest=None, memory=128, addresses=()):
        """Start a domain, wait until its guest's servers are up."""
        guest = guest or Guest()
        xml = self.dir / f"{name}.xml"
        console = self.host.bed.dir / f"{name}.console"
        xml.write_text(domain_xml(name, guest, memory, addresses, console))
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
