# SPDX-License-Identifier: GPL-2.0-or-later
"""SPICE clients follow a migration: told where to, and the source's QEMU stays until they have left it."""

import json
import os
import socket
import subprocess

import pytest

import spice
from faults import qemus
from stays import small
from testbed import LIMIT, Testbed, section, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
QEMU = "/usr/bin/qemu-system-x86_64"  # Debian's own has SPICE


@pytest.fixture(scope="module")
def bed():
    with Testbed(sshd=False) as bed:
        for host in bed.hosts:
            host.write_conf(binary=QEMU)
        yield bed


@pytest.fixture
def vm(bed, request):
    """The name of a VM on a that has a SPICE server."""
    name = request.node.name.replace("_", "-")
    small(bed.a, name, 5, section("graphics spice", listen="0.0.0.0"), binary=QEMU)
    bed.a.vmferry("start", name)
    yield name
    for host in bed.hosts:
        host.vmferry("kill", name, check=False)
        assert host.wait_clean() == []


def connect(host, session=0):
    """A client on the migration network."""
    with host.bed.switch.entered():
        s = socket.socket()
    s.settimeout(LIMIT)
    s.connect((host.address, 5900))
    return spice.Spice(s, session)


def start_migration(bed, vm, *options):
    return bed.a.popen("vmferry", "migrate", vm, bed.b.exec_destination(), "--transport=tcp", "--json", *options,
                       stdout=subprocess.PIPE, text=True)


def ended(mover):
    output = mover.communicate(timeout=LIMIT)[0]
    result = json.loads(output.strip().split("\n")[-1])
    assert (mover.returncode, result["status"]) == (0, "completed"), result
    return result


def test_without_a_client(bed, vm):
    result = bed.a.migrate(vm, bed.b, "--transport=tcp")
    assert (result["graphics"]["type"], result["graphics"]["port"], result["warnings"]) == ("spice", 5900, [])
    assert "SPICE clients go on at b, port 5900" in (bed.a.state / vm / "log").read_text()
    connect(bed.b).close()
    assert bed.a.wait_clean() == []


def test_client_follows(bed, vm):
    """It connects to the target before the guest is there; nobody can let the source's QEMU run while it lets go."""
    old = connect(bed.a)
    session = int.from_bytes(old.wait(spice.INIT)[:4], "little")
    mover = start_migration(bed, vm, "--bandwidth=64K")
    assert spice.destination(old.wait(spice.MIGRATE_BEGIN)) == ("b", 5900)
    new = connect(bed.b, session=session)
    old.send(spice.MIGRATE_CONNECTED)
    wait_until(lambda: ((bed.a.status(vm) or {}).get("migration") or {}).get("state") == "perform")
    bed.a.vmferry("set", vm, "bandwidth=1G")
    old.wait(spice.MIGRATE_END)
    wait_until(lambda: bed.b.status(vm)["state"] == "running")
    assert len(qemus(bed.a, vm)) == 1 and mover.poll() is None
    refused = bed.a.vmferry("resume", vm, check=False)
    assert refused.returncode == 1, refused.stdout + refused.stderr
    old.close()
    assert ended(mover)["warnings"] == []
    new.close()
    assert bed.a.wait_clean() == []


def test_client_that_does_not_let_go(bed, vm):
    """The source's QEMU goes all the same, and the person is told."""
    old = connect(bed.a)
    old.wait(spice.INIT)
    mover = start_migration(bed, vm)
    old.wait(spice.MIGRATE_BEGIN)
    old.send(spice.MIGRATE_CONNECTED)
    warnings = ended(mover)["warnings"]
    assert len(warnings) == 1 and "did not hand its clients over" in warnings[0], warnings
    old.close()
    assert bed.a.wait_clean() == []


def test_tls(bed, vm, tmp_path):
    """Who follows to a server with TLS is told whose certificate it shows."""
    pki = bed.dir / "pki"
    spice.certificate(pki, "/O=Example/CN=viewers, b")
    definition = tmp_path / "there.vm"
    text = (bed.a.config / "vms" / f"{vm}.vm").read_text()
    definition.write_text(text.replace("graphics spice {", f'graphics spice {{ tls-directory = "{pki}"'))
    old = connect(bed.a)
    old.wait(spice.INIT)
    mover = start_migration(bed, vm, f"--to-definition={definition}")
    begin = old.wait(spice.MIGRATE_BEGIN)
    assert spice.destination(begin)[0] == "b" and spice.tls(begin) == (5900, "O=Example,CN=viewers\\, b")
    old.close()
    assert ended(mover)["graphics"]["tls_port"] == 5900
    with bed.b.netns.entered():
        answer = subprocess.run(["openssl", "s_client", "-connect", "127.0.0.1:5900"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert "O = Example" in answer.stdout, answer
    bed.a.wait_clean()
    text = text.replace("graphics spice {", 'graphics spice { tls-directory = "/nonexistent"')
    definition.write_text(text)
    refused = bed.b.vmferry("migrate", vm, bed.a.exec_destination(), "--transport=tcp", f"--to-definition={definition}", check=False)
    assert refused.returncode == 1 and "/nonexistent/server-cert.pem" in refused.stderr, refused
