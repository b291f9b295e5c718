"""`edgetun purge` against a running exit node."""

from __future__ import annotations

import json
import signal
import stat
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from edgetun_core.exits import ExitCode
from edgetun_core.purge import ADMIN_FILE, PURGE_PATH
from support.commands import Command, an_origin, run, visit
from support.waiting import wait_for

HOST = "shop.localhost"
FLAGS = ("--host", "shop", "--cache", "1h", "--http-port", "0", "--https-port", "-1", "--metrics", "127.0.0.1:0")


def test_what_is_purged_is_asked_for_again_and_nothing_else(tmp_path: Path) -> None:
    with an_origin() as origin, Command("edgetun", "http", origin.url, "--state", str(tmp_path), *FLAGS) as edge:
        port = int(edge.line(r"http://shop\.localhost:(\d+)")[1])
        edge.line("metrics at")
        for path in ("/a", "/b", "/a", "/b"):
            assert visit(port, path, host=HOST).status == 200
        assert sorted(origin.paths) == ["/a", "/b"]
        done = run("edgetun", "purge", "--state", str(tmp_path), "--url", f"http://{HOST}:{port}/a")
        assert (done.ended(), done.out) == (0, "purged 1 stored response\n")
        for path in ("/a", "/b"):
            visit(port, path, host=HOST)
        assert sorted(origin.paths) == ["/a", "/a", "/b"]
        done = run("edgetun", "purge", "--state", str(tmp_path), "--prefix", f"http://{HOST}:{port}/", "--json")
        assert json.loads(done.out) == {"purged": 2}
        done = run("edgetun", "purge", "--state", str(tmp_path), "--url", "http://nobody.test/")
        assert done.ended() == ExitCode.FAILURE
        assert "no tunnel of this exit node has this host" in done.err


def test_only_who_can_read_the_state_folder_may_purge(tmp_path: Path) -> None:
    with an_origin() as origin, Command("edgetun", "http", origin.url, "--state", str(tmp_path), *FLAGS) as edge:
        edge.line("metrics at")
        file = tmp_path / ADMIN_FILE
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        access = json.loads(file.read_text())
        order = b'{"urls": ["http://shop.localhost/"]}'
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {access['token']}"}):
            request = urllib.request.Request(access["url"] + PURGE_PATH, data=order, headers=headers)
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=10)
            with refused.value as error:
                assert error.code == 401
                assert access["token"] not in error.read().decode()
        bearer = {"Authorization": f"Bearer {access['token']}"}
        for data, more, status in ((b"{}", {}, 400), (b"x", {"Content-Length": "9999999"}, 413), (None, {}, 405)):
            request = urllib.request.Request(access["url"] + PURGE_PATH, data=data, headers={**bearer, **more})
            with pytest.raises(urllib.error.HTTPError) as wrong:
                urllib.request.urlopen(request, timeout=10)
            with wrong.value as error:
                assert error.code == status
        assert access["token"] not in edge.said


def test_mistakes_say_what_to_do(tmp_path: Path) -> None:
    done = run("edgetun", "purge", "--state", str(tmp_path))
    assert "nothing to purge; give a URL" in done.err
    done = run("edgetun", "purge", "--state", str(tmp_path), "--tag", "x")
    assert "--tunnel" in done.err
    done = run("edgetun", "purge", "--state", str(tmp_path), "--url", "http://a/")
    assert done.ended() == ExitCode.USAGE
    assert "--metrics" in done.err
    (tmp_path / ADMIN_FILE).write_text('{"url": "http://127.0.0.1:1", "token": "secret-x"}')
    done = run("edgetun", "purge", "--state", str(tmp_path), "--url", "http://a/")
    assert "no exit node answers" in done.err
    assert done.ended() == ExitCode.UNREACHABLE
    assert "secret-x" not in done.err


def test_a_killed_exit_node_serves_from_disk_after_its_restart(tmp_path: Path) -> None:
    manifest = tmp_path / "tunnel.yaml"
    state = tmp_path / "state"

    def up(origin_url: str) -> Command:
        manifest.write_text(
            f"""apiVersion: edgetun.dev/v1alpha1
kind: ExitPool
metadata: {{name: here}}
spec: {{regions: [{{name: local}}], domains: ["*"], limits: {{cacheDiskBytes: 64Mi}}}}
---
apiVersion: edgetun.dev/v1alpha1
kind: Tunnel
metadata: {{name: shop}}
spec:
  hostnames: [shop.localhost]
  pool: {{name: here}}
  origin: {{url: "{origin_url}"}}
  cache: {{mode: override, ttl: 1h}}
"""
        )
        ports = ("--http-port", "0", "--https-port", "-1")
        return Command("edgetun", "up", "-f", str(manifest), "--state", str(state), *ports)

    with an_origin() as origin:
        with up(origin.url) as edge:
            port = int(edge.line(r"http://shop\.localhost:(\d+)")[1])
            assert visit(port, "/page", host=HOST).body == "origin /page"
            wait_for(lambda: any(path.is_file() and path.suffix != ".part" for path in (state / "cache").rglob("*")))
            edge.signal(signal.SIGKILL)
            edge.ended()
        with up(origin.url) as edge:
            port = int(edge.line(r"http://shop\.localhost:(\d+)")[1])
            wait_for(lambda: "hit" in visit(port, "/page", host=HOST).fields.get("cache-status", ""))
            assert origin.paths.count("/page") <= 2, "once before, and once if asked before the index was read"
