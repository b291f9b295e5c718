"""A running `edgetun serve`, the tokens made of it, and agents that use them."""

from __future__ import annotations

from pathlib import Path

from support.commands import Command, run

LOOPBACK = ("--listen", "127.0.0.1", "--https-port", "-1")


class Server:
    """`edgetun serve` on loopback, its state folder, and all tokens that were made of it."""

    def __init__(self, command: Command, state: Path) -> None:
        self.command = command
        self.state = state
        self.tokens: list[str] = []
        self.port = int(command.line(r"http on 127\.0\.0\.1:(\d+)")[1])
        self.tunnel_port = int(command.line(r"register at https://127\.0\.0\.1:(\d+)")[1])
        command.line("ready in")

    def token(self, *flags: str) -> str:
        made = run("edgetun", "token", "create", "--state", str(self.state), *flags)
        assert made.ended() == 0, made.said
        token = made.out.strip()
        assert token.startswith("edgetun_")
        assert token not in made.err
        self.tokens.append(token)
        return token

    def agent(self, token: str, folder: Path, *flags: str) -> Command:
        return Command("edgetun-agent", "--state", str(folder), *flags, environ={"EDGETUN_CLUSTER_TOKEN": token})


def start_server(state: Path, *flags: str) -> Command:
    ports = ("--http-port", "0", "--tunnel-port", "0") if "--http-port" not in flags else ()
    return Command("edgetun", "serve", "--state", str(state), *LOOPBACK, *ports, *flags)
