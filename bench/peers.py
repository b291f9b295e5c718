"""Finds or builds the systems that edgetun is measured beside: frp, rathole, chisel, piko, caddy, nginx, varnish, wrk.

Built once, as a Go module or a crate by the ordinary clients, into a cache outside the clone
(`~/.cache/edgetun-bench`, or `$EDGETUN_BENCH_CACHE`). Versions are pinned so that figures of different days compare.

    python bench/peers.py            # say what is there and what is missing
    python bench/peers.py build      # build what is missing, one after another
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("EDGETUN_BENCH_CACHE", "~/.cache/edgetun-bench")).expanduser()
BIN = CACHE / "bin"

FRP = "github.com/fatedier/frp@v0.65.0"
CADDY = "github.com/caddyserver/caddy/v2@v2.10.2"
PIKO = "github.com/andydunstall/piko@v0.7.0"
CHISEL = "github.com/jpillora/chisel@v1.11.3"
RATHOLE = "0.5.0"


class MissingPeerError(Exception):
    """A peer is neither installed nor built; the message says what to type."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One program we run beside edgetun, and how it gets onto the machine."""

    name: str
    version: str
    build: Callable[[], None] | None
    remedy: str
    is_pinned: bool = False
    """Only what was built here counts: a distribution's own is years older than what people run."""

    def path(self) -> Path | None:
        built = BIN / self.name
        if built.exists():
            return built
        if self.is_pinned:
            return None
        found = shutil.which(self.name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        return Path(found) if found else None


def _run(command: list[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    print("+", " ".join(command), flush=True)
    subprocess.run(["nice", "-n", "19", *command], cwd=cwd, env={**os.environ, **(env or {})}, check=True)


def _build_go(module: str, packages: dict[str, str]) -> None:
    """Builds a module's programs inside a copy of the module: its own `go.sum` and `replace` lines then hold.

    `go install module@version` would refuse a module with `replace` lines, which frp has.
    """
    go_env = {"GOFLAGS": "-p=1 -buildvcs=false", "CGO_ENABLED": "0"}
    done = subprocess.run(
        ["go", "mod", "download", "-json", module],
        capture_output=True,
        text=True,
        env={**os.environ, **go_env},
        check=False,
    )
    answer = json.loads(done.stdout or "{}")
    if done.returncode or "Dir" not in answer:
        raise MissingPeerError(f"{module} cannot be downloaded: {answer.get('Error', done.stderr.strip())}")
    source = CACHE / "src" / module.replace("/", "_")
    if not source.exists():
        shutil.copytree(answer["Dir"], source)
        _run(["chmod", "-R", "u+w", str(source)])
    BIN.mkdir(parents=True, exist_ok=True)
    for name, package in packages.items():
        if not (BIN / name).exists():
            _run(["go", "build", "-trimpath", "-ldflags=-s -w", "-o", str(BIN / name), package], cwd=source, env=go_env)


def _build_frp() -> None:
    _build_go(FRP, {"frps": "./cmd/frps", "frpc": "./cmd/frpc"})


def _build_piko() -> None:
    _build_go(PIKO, {"piko": "."})


def _build_chisel() -> None:
    _build_go(CHISEL, {"chisel": "."})


def _build_caddy() -> None:
    _build_go(CADDY, {"caddy": "./cmd/caddy"})


def _build_rathole() -> None:
    # Without --locked: the lock file's `time` does not compile with compilers since 1.80.
    features = ["--no-default-features", "--features", "server,client,tls,noise"]
    _run(["cargo", "install", "-j1", "--root", str(CACHE), "--version", RATHOLE, *features, "rathole"])


BUILD_IT = "build it with: python bench/peers.py build"
PEERS = {
    peer.name: peer
    for peer in (
        Peer("nginx", "the distribution's", None, "install it, on Debian: apt-get install nginx-light"),
        Peer("varnishd", "the distribution's", None, "install it, on Debian: apt-get install varnish"),
        Peer("wrk", "the distribution's", None, "install it, on Debian: apt-get install wrk"),
        Peer("h2load", "the distribution's", None, "install it, on Debian: apt-get install nghttp2-client"),
        Peer("h2o", "the distribution's", None, "install it, on Debian: apt-get install h2o"),
        Peer("frps", FRP, _build_frp, BUILD_IT),
        Peer("frpc", FRP, _build_frp, BUILD_IT),
        Peer("rathole", RATHOLE, _build_rathole, BUILD_IT),
        Peer("chisel", CHISEL, _build_chisel, BUILD_IT),
        Peer("piko", PIKO, _build_piko, BUILD_IT),
        Peer("caddy", CADDY, _build_caddy, BUILD_IT, is_pinned=True),
    )
}


def require(name: str) -> str:
    """The path of a peer's program; raises `MissingPeerError` with what to do."""
    path = PEERS[name].path()
    if path is None:
        raise MissingPeerError(f"{name} is not on this machine; {PEERS[name].remedy}")
    return str(path)


def available(*names: str) -> bool:
    return all(PEERS[name].path() for name in names)


def main(arguments: list[str]) -> int:
    failed = 0
    if arguments[:1] == ["build"]:
        for name in arguments[1:] or list(PEERS):
            build = PEERS[name].build
            if build is None or PEERS[name].path():
                continue
            try:
                build()
            except (MissingPeerError, subprocess.CalledProcessError, FileNotFoundError) as error:
                print(f"{name}: not built: {error}", flush=True)
                failed = 1
    for peer in PEERS.values():
        print(f"{peer.name:10} {peer.path() or 'missing; ' + peer.remedy}")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
