# SPDX-License-Identifier: GPL-2.0-or-later
"""Where clients of VNC and SPICE connect: one port, whatever QEMU has the guest and whichever keeper looks after it."""

import itertools
import os
import signal
import socket
import ssl

import pytest

import spice
from faults import Injector, keepers, parents
from stays import small
from testbed import LIMIT, Testbed, build_option, qemu, section, wait_until

OLD = "/usr/bin/qemu-system-x86_64"
MACHINE = "pc-q35-7.2"  # what both know
numbers = itertools.count(30)  # no two VMs have the same addresses

pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists(OLD), reason="needs root, and Debian's QEMU 7.2 beside 10.0")


@pytest.fixture(scope="module")
def bed():
    with Testbed(sshd=False) as bed:
        spice.certificate(bed.dir / "pki", "/O=Example/CN=viewers")
        for host in bed.hosts:
            host.write_conf()
        yield bed


@pytest.fixture
def vm(bed, request):
    """Defines and starts a VM on a; returns its name."""
    names = []

    def start(kind="vnc", suffix="", **keys):
        name = request.node.name.translate(str.maketrans("_[]", "---")).strip("-") + suffix
        names.append(name)
        define(bed, name, kind, **keys)
        bed.a.vmferry("start", name)
        return name

    yield start
    for host in bed.hosts:
        for name in names:
            host.vmferry("kill", name, check=False)
        assert host.wait_clean(*names) == []


def define(bed, name, kind, **keys):
    keys = {"listen": "127.0.0.1"} | keys | ({"tls_directory": str(bed.dir / "pki")} if kind == "tls" else {})
    graphics = section("graphics vnc" if kind == "vnc" else "graphics spice", **keys)
    small(bed.a, name, next(numbers), graphics, binary=OLD, machine=MACHINE)


def connect(host, port):
    with host.netns.entered():
        s = socket.socket()
    s.settimeout(LIMIT)
    s.connect(("127.0.0.1", port))
    return s


def read(s, n):
    data = b""
    while len(data) < n:
        more = s.recv(n - len(data))
        assert more, f"the server has closed the connection after {data}"
        data += more
    return data


def greet_vnc(s):
    """RFC 6143: versions, no password, ServerInit with the guest's name."""
    s.sendall(read(s, 12))
    assert read(s, read(s, 1)[0]) == b"\1"
    s.sendall(b"\1")
    assert read(s, 4) == bytes(4)
    s.sendall(b"\1")
    size = int.from_bytes(read(s, 24)[20:], "big")
    assert read(s, size).startswith(b"QEMU")
    return s


def greet_tls(s):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return greet_spice(context.wrap_socket(s))


def greet_spice(s):
    spice.Spice(s).wait(spice.INIT)
    return s


GREET = {"vnc": greet_vnc, "spice": greet_spice, "tls": greet_tls}


def viewer(host, name, kind="vnc"):
    """A client to which a server has said what a client of its kind wants to hear."""
    return GREET[kind](connect(host, port_of(host, name)))


def port_of(host, name):
    graphics = host.status(name)["graphics"]
    return graphics.get("port") or graphics["tls_port"]


def ended(s):
    """Wait until the server has closed the connection."""
    try:
        while s.recv(65536):
            pass
    except ConnectionResetError:
        pass
    s.close()


def moves(s):
    """A viewer that goes on: its server answers FramebufferUpdateRequest."""
    s.sendall(bytes([3, 0, 0, 0, 0, 0, 0, 1, 0, 1]))
    assert read(s, 1) == b"\0"


@pytest.mark.parametrize("kind", GREET)
def test_upgrades(bed, vm, kind):
    """7.2, 10.0, 7.2: viewers find each of them where they found the one before."""
    name = vm(kind)
    port = port_of(bed.a, name)
    assert port >= 5900 and (bed.a.status(name)["graphics"].get("tls_port") == port) == (kind == "tls")
    old = viewer(bed.a, name, kind)
    for binary in (qemu(), OLD):
        before = bed.a.status(name)
        result = bed.a.vmferry_json("upgrade", name, "--binary", binary)
        assert result["status"] == "completed" and result["warnings"] == [], result
        after = bed.a.status(name)
        assert before["qemu_version"] != after["qemu_version"] and before["graphics"] == after["graphics"]
        ended(old)
        old = viewer(bed.a, name, kind)
    with bed.a.netns.entered():
        assert [line.split()[3] for line in bed.a.run("ss", "-Hltn").stdout.splitlines()] == [f"127.0.0.1:{port}"]


def test_keeper_restarts(bed, vm):
    """Killed or replaced: the same port, which no other VM gets meanwhile, and who is connected notices nothing."""
    with bed.a.netns.entered(), socket.create_server(("127.0.0.1", 5900)):
        name = vm()
        port, looking = port_of(bed.a, name), viewer(bed.a, name)
        [pid], [parent] = keepers(bed.a, name), parents(bed.a, name)
        os.kill(parent, signal.SIGSTOP)
        try:
            os.kill(pid, signal.SIGKILL)
            assert (port, port_of(bed.a, vm(suffix="2"))) == (5901, 5902)
        finally:
            os.kill(parent, signal.SIGCONT)
    wait_until(lambda: keepers(bed.a, name) not in ([], [pid]) and bed.a.vmferry("status", name, check=False).returncode == 0)
    assert port_of(bed.a, name) == port
    moves(looking)
    bed.a.vmferry("restart-keeper", name)
    assert port_of(bed.a, name) == port
    moves(looking)
    viewer(bed.a, name)


def test_chosen_port(bed, vm, tmp_path):
    """One that is taken is an error that says which, on whatever host and at whatever time."""
    name = vm(port=5977)
    assert port_of(bed.a, name) == 5977 and "vnc" in bed.a.vmferry("status", name).stdout
    greet_vnc(connect(bed.a, 5977)).close()
    with bed.a.netns.entered(), socket.create_server(("127.0.0.1", 5978)):
        there = tmp_path / "there.vm"
        there.write_text((bed.a.config / "vms" / f"{name}.vm").read_text().replace("5977", "5978"))
        refused = bed.a.vmferry("upgrade", name, f"--to-definition={there}", check=False)
        assert refused.returncode == 1 and "port 5978 of 127.0.0.1 is taken" in refused.stderr, refused
        viewer(bed.a, name).close()
    assert bed.a.vmferry_json("upgrade", name, f"--to-definition={there}")["status"] == "completed"
    assert port_of(bed.a, name) == 5978
    elsewhere = tmp_path / "elsewhere.vm"
    elsewhere.write_text(there.read_text().replace("127.0.0.1", "0.0.0.0"))
    refused = bed.a.vmferry("upgrade", name, f"--to-definition={elsewhere}", check=False)
    assert refused.returncode == 1 and "by this VM itself, for 127.0.0.1" in refused.stderr, refused
    with pytest.raises(ConnectionRefusedError):
        connect(bed.a, 5977)
    with bed.b.netns.entered(), socket.create_server(("127.0.0.1", 5978)):
        for verb in ("check", "migrate"):
            refused = bed.a.vmferry(verb, name, bed.b.exec_destination(), check=False)
            assert refused.returncode == 1 and "port 5978 of 127.0.0.1 is taken" in refused.stdout + refused.stderr, refused
    looking = viewer(bed.a, name)
    result = bed.a.migrate(name, bed.b, "--transport=tcp")
    assert result["graphics"]["port"] == 5978 and port_of(bed.b, name) == 5978
    ended(looking)
    viewer(bed.b, name).close()
    bed.b.vmferry("kill", name)
    with bed.a.netns.entered(), socket.create_server(("127.0.0.1", 5977)):
        with pytest.raises(AssertionError, match="port 5977 of 127.0.0.1 is taken"):
            vm(suffix="2", port=5977)


def test_crowd(bed, vm):
    """Clients that say nothing hold nobody up."""
    name = vm(listen="::")
    port = port_of(bed.a, name)
    crowd = [connect(bed.a, port) for _ in range(100)]
    assert bed.a.status(name)["state"] == "running"
    for s in crowd:
        assert read(s, 12).startswith(b"RFB")
        s.close()
    viewer(bed.a, name).close()


@pytest.fixture
def injector(bed):
    if not build_option("faults"):
        pytest.skip("needs -Dfaults=true")
    injector = Injector(bed.hosts)
    yield injector
    injector.close()


def test_waits_for_the_new_one(bed, vm, injector):
    """Who comes while the old QEMU hands the guest over is greeted by the new one."""
    name, came = vm(), []
    port = port_of(bed.a, name)
    injector.begin({(bed.a, "START_UPGRADE", "before"): lambda: came.append(connect(bed.a, port))})
    assert bed.a.vmferry_json("upgrade", name, "--binary", qemu())["status"] == "completed"
    moves(greet_vnc(came[0]))


def test_refused_by_one_that_goes(bed, vm, injector):
    """Who comes while the guest stands still and leaves for another host is not greeted by the QEMU it leaves."""
    name, came = vm(), []
    port = port_of(bed.a, name)
    injector.begin({(bed.a, "LAST_DELTA", "before"): lambda: came.append(connect(bed.a, port))})
    bed.a.migrate(name, bed.b, "--transport=tcp")
    with pytest.raises(ConnectionResetError):
        came[0].recv(1)
    viewer(bed.b, name).close()
