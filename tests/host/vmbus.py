# SPDX-License-Identifier: GPL-2.0-or-later
"""A message bus for each host, and vmferry-vmstate on it: what tests and the bench share."""

import json
import pathlib
import subprocess

from testbed import BUILD

TOOL = BUILD / "src/companions/vmferry-vmstate"
CONNTRACK = BUILD / "src/companions/vmferry-conntrack"

# As the system bus is set up, with the policy that is installed.
CONFIG = """<busconfig>
  <type>system</type>
  <listen>unix:path={path}</listen>
  <listen>unix:abstract={path}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
  </policy>
  <include>{policy}</include>
</busconfig>
"""
POLICY = pathlib.Path(__file__).resolve().parents[2] / "data/org.qemu.VMState1.conf"


class Bus:
    """A message bus of a host's own."""

    def __init__(self, host):
        self.host, path = host, host.dir / "bus"
        config = host.dir / "bus.conf"
        config.write_text(CONFIG.format(path=path, policy=POLICY))
        self.address = f"unix:path={path}"
        self.process = host.popen("dbus-daemon", f"--config-file={config}", "--nofork", "--print-address", stdout=subprocess.PIPE)
        assert self.process.stdout.readline()

    def tool(self, *words, check=True, **more):
        return self.host.run(TOOL, *words, f"--bus={self.address}", check=check, **more)

    def helpers(self):
        return {h["id"]: h for h in map(json.loads, self.tool("status", "--json").stdout.splitlines())}

    def call(self, owner, method, *words):
        return self.host.run("dbus-send", f"--bus={self.address}", "--type=method_call", "--print-reply", f"--dest={owner}",
                             "/org/qemu/VMState1", f"org.qemu.VMState1.{method}", *words).stdout

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def qmp_option(host, name="web1"):
    return ["-qmp", f"unix:{host.dir}/{name}.qmp,server=on,wait=off"]


def start(bus, guest, name="web1", *options):
    return bus.tool("start", name, f"--qmp={bus.host.dir}/{name}.qmp", f"--address={guest.ip4}", f"--address={guest.ip6}",
                    f"--log={bus.host.dir}/{name}.vmstate.log", *options)
