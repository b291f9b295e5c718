"""Links that carry small packets only, with real processes and the kernels' own MTU: nothing larger gets through, and nobody is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgetun_core.exits import ExitCode
from support.commands import Command, run
from support.impairment import Impairment
from support.impairment.packet_path import PacketPath, packet_path, what_is_missing_for_packets
from support.requirements import missing

SIZE = 2_000_000
ORIGIN = f"""
import hashlib, http.server
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, body):
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def do_GET(self): self.answer(bytes(range(250)) * {SIZE // 250})
    def do_POST(self): self.answer(hashlib.sha256(self.rfile.read(int(self.headers["Content-Length"]))).hexdigest().encode())
    def log_message(self, *a): pass
s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), H); print(s.server_address[1], flush=True); s.serve_forever()
"""
VISITOR = f"""
import hashlib, http.client
body = bytes(range(250)) * {SIZE // 250}
c = http.client.HTTPConnection("10.77.0.1", 8080, timeout=40)
c.request("GET", "/", headers={{"Host": "narrow.localhost"}}); r = c.getresponse()
assert (r.status, r.read() == body) == (200, True), r.status
c.request("POST", "/", body=body, headers={{"Host": "narrow.localhost"}}); r = c.getresponse()
assert (r.status, r.read().decode()) == (200, hashlib.sha256(body).hexdigest()), r.status
"""

pytestmark = pytest.mark.timeout(180)


def visit(path: PacketPath, what: str, agent: Command) -> None:
    """Two megabytes down and up, whole."""
    argv = [*path.near.enter, sys.executable, "-c", VISITOR]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, (what, done.stderr, agent.said, path.counts())


def test_megabytes_cross_links_of_1280_and_1232_bytes_over_quic(tmp_path: Path) -> None:
    """First the way becomes narrower under a session that had more, and no ICMP tells; then an agent begins where its own
    interface knows, as a VPN's does, and the exit node's does not."""
    reason = what_is_missing_for_packets()
    if reason:
        missing(reason)
    state = tmp_path / "server"
    with (
        packet_path() as path,
        Command(
            "edgetun",
            *("serve", "--state", str(state), "--listen", path.near.address, "--public-host", path.near.address),
            *("--https-port", "-1", "--http-port", "8080"),
            within=path.near.enter,
        ) as server,
        subprocess.Popen([*path.far.enter, sys.executable, "-c", ORIGIN], stdout=subprocess.PIPE) as origin,
    ):
        try:
            assert origin.stdout is not None
            url = f"http://127.0.0.1:{int(origin.stdout.readline())}"
            server.line("ready in", 40)
            made = run("edgetun", "token", "create", "--state", str(state))
            assert made.ended() == 0, made.said

            def an_agent() -> Command:
                return Command(
                    "edgetun-agent",
                    *("--state", str(tmp_path / "agent"), "--origin", url, "--host", "narrow", "--transport", "quic"),
                    environ={"EDGETUN_CLUSTER_TOKEN": made.out.strip()},
                    within=path.far.enter,
                )

            with an_agent() as agent:
                agent.line("ready in", 60)
                for mtu_bytes in (1500, 1280, 1232):
                    path.set(Impairment(mtu_bytes=mtu_bytes))
                    visit(path, f"became {mtu_bytes}", agent)
                counts = path.counts()
                assert counts["up"]["too_large"] + counts["down"]["too_large"] > 0, "there were larger ones"
                assert "lost the session" not in agent.said
                assert agent.stop() == ExitCode.OK
            path.far.set_mtu(1232)
            with an_agent() as agent:
                agent.line("ready in", 60)
                assert "over quic" in agent.said
                visit(path, "begins at 1232", agent)
        finally:
            origin.kill()
