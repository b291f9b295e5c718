"""Real servers that tests put behind tunnels: Redis and sshd, found on the machine and run in a folder of the test's own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.requirements import missing
from support.streams import free_port
from support.waiting import wait_for

SBIN = "/usr/sbin:/usr/local/sbin:/sbin"


def program(name: str, package: str) -> str:
    """The path of a program; without it the test is skipped, or fails where everything must be there."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SBIN}")
    if found is None:
        missing(f"{name}; on Debian: apt-get install {package}")
    return found


def answers(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), 5):
        return True


@contextmanager
def a_daemon(command: Sequence[str], port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server until the block ends."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            wait_for(lambda: answers(port), 20, f"{command[0]} answers at port {port}; it said {log.read_text()}")
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def a_redis(folder: Path) -> Iterator[int]:
    """A Redis server; its port."""
    port = free_port()
    command = [
        program("redis-server", "redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
        "--dir", str(folder), "--daemonize", "no",
    ]  # fmt: skip
    with a_daemon(command, port, folder / "redis.log"):
        yield port


@contextmanager
def a_dns_server(folder: Path) -> Iterator[int]:
    """dnsmasq with a few names of its own, which asks nobody else; its port, UDP and TCP."""
    port = free_port()
    command = [
        program("dnsmasq", "dnsmasq-base"), "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
        f"--port={port}", "--listen-address=127.0.0.1", "--bind-interfaces", "--address=/shop.example.com/192.0.2.7",
        f"--txt-record=long.example.com,{','.join('x' * 200 for _ in range(12))}", "--edns-packet-max=4096",
        f"--pid-file={folder / 'dnsmasq.pid'}", f"--user={getpass.getuser()}", "--cache-size=0",
    ]  # fmt: skip
    with a_daemon(command, port, folder / "dnsmasq.log"):
        yield port


class Sshd:
    """A running sshd that lets the user who runs the test in, by a key of the test's own."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port = port
        self.user = getpass.getuser()
        self._folder = folder

    def command(self, port: int, *command: str) -> list[str]:
        """`ssh` to a port that leads here."""
        return [
            program("ssh", "openssh-client"), "-p", str(port), "-i", str(self._folder / "id"), "-F", "none",
            "-o", f"UserKnownHostsFile={self._folder / 'known_hosts'}", "-o", "HostKeyAlias=tunnel",
            "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=20",
            f"{self.user}@127.0.0.1", *command,
        ]  # fmt: skip


@contextmanager
def an_sshd(folder: Path) -> Iterator[Sshd]:
    """An SSH server; its host key is in the client's known hosts, so that nobody in between could be taken for it."""
    sshd, keygen = program("sshd", "openssh-server"), program("ssh-keygen", "openssh-client")
    port = free_port()
    for name in ("host", "id"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    host_key = (folder / "host.pub").read_text()
    (folder / "known_hosts").write_text(f"tunnel {host_key}")
    shutil.copy(folder / "id.pub", folder / "authorized_keys")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\n"
        f"PidFile {folder}/sshd.pid\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
        "PrintMotd no\nPrintLastLog no\n"
    )
    with (
        _privilege_separation_folder(),
        a_daemon([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], port, folder / "sshd.log"),
    ):
        yield Sshd(port, folder)


@contextmanager
def _privilege_separation_folder() -> Iterator[None]:
    """As root, sshd wants an empty folder that an init system would have made."""
    folder = Path("/run/sshd")
    if os.geteuid() != 0 or folder.exists():
        yield
        return
    folder.mkdir(mode=0o755)
    try:
        yield
    finally:
        folder.rmdir()
