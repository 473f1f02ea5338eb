"""A RUN's own network, on a machine made for it: a network namespace with addresses, a web server and a resolver."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from builder.sandbox import forwarding
from tests import building

ROOT = Path(__file__).resolve().parents[2]
BUSYBOX = Path("/bin/busybox")

MACHINE = r"""
import json, shutil, socket, sys, threading
from pathlib import Path
from builder.executors import RunSpec
from builder.executors.namespaces import NamespaceExecutor
from cache.snapshots import DirectoryRoot

folder, program = Path(sys.argv[1]), sys.argv[2]

def serve(address, answer):
    server = socket.create_server((address, 8000))
    def run():
        while True:
            with server.accept()[0] as client:
                client.sendall(answer)
    threading.Thread(target=run, daemon=True).start()

def resolve(address):
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((address, 53))
    def run():
        while True:
            query, client = server.recvfrom(512)
            question = query[12:]
            kind = question[question.index(0) + 1:][:2]
            count = b"\0\1" if kind == b"\0\1" else b"\0\0"
            answer = b"\xc0\x0c\0\1\0\1\0\0\0\x05\0\4" + bytes((198, 51, 100, 9)) if kind == b"\0\1" else b""
            server.sendto(query[:2] + b"\x81\x80\0\1" + count + b"\0\0\0\0" + question + answer, client)
    threading.Thread(target=run, daemon=True).start()

serve("198.51.100.9", b"outside")
serve("127.0.0.1", b"loopback")
resolve(sys.argv[3])
root = folder / "run/root"
(root / "bin").mkdir(parents=True)
(root / "etc").mkdir()
shutil.copy("/bin/busybox", root / "bin/busybox")
for name in ("sh", "nc", "timeout", "ip", "awk", "grep", "nslookup"):
    (root / "bin" / name).symlink_to("busybox")
executor = NamespaceExecutor("privileged", network=program)

def run(script, network="default"):
    said = []
    spec = RunSpec(root=DirectoryRoot(root), argv=("/bin/sh", "-c", script), env=("PATH=/bin",), network=network,
                   resolv_conf=f"nameserver {sys.argv[3]}\n".encode())
    status = executor.run(spec, said.append, threading.Event())
    return [status, b"".join(said).decode()]

# The sending side stays open for a moment: pasta of 2023 may lose the other end's end when both come at once.
get = "sleep 0.2 | timeout 10 nc %s 8000"
print(json.dumps({
    "outside": run(get % "198.51.100.9"),
    "name": run("nslookup there.example | grep -q '^Address.*198.51.100.9' && echo -n outside"),
    "loopback": run(get % "127.0.0.1"),
    "gateway": run(get.replace("10", "2") % "$(ip route | awk '$1 == \"default\" {print $3}')"),
    "host": run(get % "127.0.0.1", "host"),
    "none": run(get % "198.51.100.9", "none"),
}))
executor.close()
"""


@pytest.mark.skipif(not BUSYBOX.exists(), reason="needs /bin/busybox (busybox-static)")
@pytest.mark.skipif(not (shutil.which("ip") and shutil.which("unshare")), reason="needs iproute2 and util-linux")
@pytest.mark.parametrize("name", ["slirp4netns", "pasta"])
def test_way_out_and_not_in(name: str, tmp_path: Path) -> None:
    program = shutil.which(name)
    if program is None or not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip(f"needs {name} and /dev/net/tun")
    if not building.privileged():
        pytest.skip("needs the right to mount")
    servers = [line.split()[1] for line in Path("/etc/resolv.conf").read_text().splitlines() if "nameserver" in line]
    resolver = next((server for server in servers if ":" not in server), "")
    if not resolver:
        pytest.skip("needs a resolver in /etc/resolv.conf, to stand in for")
    setup = (
        "ip link set lo up; ip tuntap add dev dummy0 mode tap; ip addr add 198.51.100.1/24 dev dummy0; "
        "ip addr add 198.51.100.9/24 dev dummy0; ip link set dummy0 up; ip route add default via 198.51.100.2; "
        'case "$4" in 127.*) ;; *) ip addr add "$4/32" dev dummy0 ;; esac; exec "$0" -c "$1" "$2" "$3" "$4"'
    )
    done = subprocess.run(
        ["unshare", "-n", "sh", "-ec", setup, sys.executable, MACHINE, str(tmp_path), program, resolver],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["outside"] == [0, "outside"]
    assert said["name"] == [0, "outside"]
    assert said["host"] == [0, "loopback"]
    for refused in ("loopback", "gateway", "none"):
        assert said[refused][0] != 0, said
        assert said[refused][1] not in {"loopback", "outside"}


def test_resolvers_out_of_reach_are_left_out() -> None:
    configuration = b"# mine\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 192.0.2.1\noptions edns0\nsearch a b\n"
    expected = b"nameserver 10.0.2.3\n# mine\nnameserver 192.0.2.1\noptions edns0\nsearch a b\n"
    assert forwarding(configuration, b"10.0.2.3") == expected
    assert forwarding(b"", b"10.0.2.3") == b"nameserver 10.0.2.3\n"
