"""`edgetun serve`, its tokens, and `edgetun-agent`: the whole way, and every way that it may be refused."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from edgetun_core.exits import ExitCode
from edgetun_exitnode.sessions.registry import PICKS_PER_CHOICE
from support.commands import Command, a_free_port, an_origin, run, visit
from support.serving import Server, start_server
from support.waiting import wait_for


def secret_of(token: str) -> str:
    """A part of a token that no other text has."""
    return token[-40:]


def test_a_name_belongs_to_the_token_that_took_it_first(server: Server, tmp_path: Path) -> None:
    first, second = server.token("--name", "first"), server.token("--name", "second")
    with (
        an_origin("laptop") as origin,
        server.agent(first, tmp_path / "a", "--origin", origin.url, "--host", "mine") as agent,
    ):
        agent.line(rf"http://mine\.localhost:{server.port} -> ")
        agent.line("ready in")
        assert visit(server.port, host="mine.localhost").body == "laptop /"
        with server.agent(second, tmp_path / "b", "--origin", "3000", "--host", "mine") as other:
            assert other.ended() == ExitCode.REFUSED
            assert "mine.localhost belongs to another token" in other.err
            assert "choose another --host" in other.err
        assert agent.stop() == ExitCode.OK
    hosts = run("edgetun", "host", "list", "--state", str(server.state))
    assert "mine.localhost" in hosts.out
    assert run("edgetun", "host", "release", "mine.localhost", "--state", str(server.state)).ended() == ExitCode.OK

    def taken_over() -> bool:
        """The server looks at its folder every now and then."""
        with server.agent(second, tmp_path / "b", "--origin", origin.url, "--host", "mine") as other:
            if other.line("ready in|belongs to another token")[0] != "ready in":
                return False
            return visit(server.port, host="mine.localhost").body == "other /"

    with an_origin("other") as origin:
        wait_for(taken_over)


def test_revoking_a_token_ends_its_agent_and_no_other(server: Server, tmp_path: Path) -> None:
    kept, ended = server.token("--name", "kept"), server.token("--name", "ended")
    with (
        an_origin() as origin,
        server.agent(kept, tmp_path / "a", "--origin", origin.url, "--host", "kept") as staying,
        server.agent(ended, tmp_path / "b", "--origin", origin.url, "--host", "ended") as going,
    ):
        staying.line("ready in")
        going.line("ready in")
        assert run("edgetun", "token", "revoke", "ended", "--state", str(server.state)).ended() == ExitCode.OK
        assert going.ended() == ExitCode.REFUSED
        assert "was revoked; ask for a new one" in going.err.splitlines()[-1]
        assert visit(server.port, host="kept.localhost").status == 200
        wait_for(lambda: visit(server.port, host="ended.localhost").status in (404, 503))
    with server.agent(ended, tmp_path / "b", "--origin", "3000", "--host", "ended") as again:
        assert again.ended() == ExitCode.REFUSED
        assert "was revoked; ask for a new one" in again.err
    tokens = json.loads(run("edgetun", "token", "list", "--json", "--state", str(server.state)).out)
    assert {line["label"]: line["state"] for line in tokens if line["label"] in ("kept", "ended")} == {
        "kept": "live",
        "ended": "revoked",
    }


def test_a_token_that_ended_says_so(server: Server, tmp_path: Path) -> None:
    token = server.token("--expires", "1s")
    over = time.time() + 1.5
    wait_for(lambda: time.time() > over)
    with server.agent(token, tmp_path, "--origin", "3000") as agent:
        assert agent.ended() == ExitCode.REFUSED
        assert re.search("ended at .*; ask for a new one", agent.err)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda token: token[:-5], "cut off or mistyped; copy it again"),
        (
            lambda token: token[:30] + ("A" if token[30] != "A" else "B") + token[31:],
            "cut off or mistyped; copy it again",
        ),
        (lambda token: "hunter2", "cluster token"),
    ],
)
def test_a_token_with_a_mistake_is_exit_3_and_not_repeated(
    change: object, says: str, server: Server, tmp_path: Path
) -> None:
    token = change(server.token())  # type: ignore[operator]
    with server.agent(token, tmp_path, "--origin", "3000") as agent:
        assert agent.ended() == ExitCode.REFUSED
        assert says in agent.err
        assert token not in agent.said
        assert "Traceback" not in agent.said


def test_a_token_of_another_server_is_not_sent_to_this_one(server: Server, tmp_path: Path) -> None:
    url = f"https://127.0.0.1:{server.tunnel_port}"
    other = tmp_path / "other"
    token = run("edgetun", "token", "create", "--state", str(other), "--url", url).out.strip()
    with server.agent(token, tmp_path, "--origin", "3000") as agent:
        assert agent.ended() == ExitCode.REFUSED, agent.said
        assert "another CA than the token names; the token was not sent" in agent.err


def test_agents_with_the_same_token_and_name_share_the_visitors(server: Server, tmp_path: Path) -> None:
    token = server.token()
    with (
        an_origin("one") as one,
        an_origin("two") as two,
        server.agent(token, tmp_path / "a", "--origin", one.url, "--host", "both") as first,
        server.agent(token, tmp_path / "b", "--origin", two.url, "--host", "both") as second,
    ):
        first.line("ready in")
        second.line("ready in")
        answered = [
            visit(server.port, f"/{n}", host="both.localhost").body.split()[0] for n in range(4 * PICKS_PER_CHOICE + 4)
        ]
        assert set(answered) == {"one", "two"}
        assert first.stop() == ExitCode.OK
        assert {visit(server.port, f"/{n}", host="both.localhost").body.split()[0] for n in range(10)} == {"two"}


def test_agents_come_back_by_themselves_when_the_server_restarts(tmp_path: Path) -> None:
    state = tmp_path / "state"
    ports = ("--http-port", str(a_free_port()), "--tunnel-port", str(a_free_port()))
    with an_origin("still here") as origin, start_server(state, *ports) as command:
        server = Server(command, state)
        agent = server.agent(server.token(), tmp_path / "a", "--origin", origin.url)
        with agent:
            url = agent.line(r"http://([a-z0-9-]+\.localhost):\d+ -> ")[1]
            agent.line("ready in")
            assert command.stop() == ExitCode.OK
            with start_server(state, *ports) as again:
                Server(again, state)
                page = wait_for(lambda: (got := visit(server.port, host=url)).status == 200 and got)
                assert page.body == "still here /"
                assert agent.stop() == ExitCode.OK


def test_a_second_server_on_the_same_folder_or_port_says_what_to_do(server: Server, tmp_path: Path) -> None:
    same_folder = start_server(server.state)
    with same_folder:
        assert same_folder.ended() == ExitCode.USAGE
        assert str(server.state) in same_folder.err
    for flag, port in (("--tunnel-port", server.tunnel_port), ("--http-port", server.port)):
        ports = {"--http-port": "0", "--tunnel-port": "0", flag: str(port)}
        with start_server(tmp_path / flag, *(word for pair in ports.items() for word in pair)) as same_port:
            assert same_port.ended() == ExitCode.PORT_TAKEN
            assert f"127.0.0.1:{port} is taken by another program" in same_port.err
            assert flag in same_port.err


def test_a_server_that_is_not_there_is_exit_4(tmp_path: Path) -> None:
    port = a_free_port()
    url = f"https://127.0.0.1:{port}"
    token = run("edgetun", "token", "create", "--state", str(tmp_path), "--url", url).out.strip()
    with Command(
        "edgetun-agent", "--state", str(tmp_path), "--origin", "3000", environ={"EDGETUN_CLUSTER_TOKEN": token}
    ) as agent:
        assert agent.ended() == ExitCode.UNREACHABLE
        assert f"127.0.0.1:{port}" in agent.err


def test_a_clock_that_is_wrong_is_told(server: Server, tmp_path: Path) -> None:
    late = tmp_path / "late"
    late.mkdir()
    (late / "sitecustomize.py").write_text("import time\nreal = time.time\ntime.time = lambda: real() + 7200\n")
    environ = {"EDGETUN_CLUSTER_TOKEN": server.token(), "PYTHONPATH": str(late)}
    with (
        an_origin() as origin,
        Command(
            "edgetun-agent", "--state", str(tmp_path), "--origin", origin.url, "--host", "late", environ=environ
        ) as agent,
    ):
        agent.line(r"warning: this machine's clock is 7\d\d\d s ahead of that of ")
        agent.line("ready in")
        assert visit(server.port, host="late.localhost").status == 200


def test_no_token_shows_in_a_log_an_error_or_the_list_of_processes(server: Server, tmp_path: Path) -> None:
    token = server.token()
    flags = ("--cluster-token", token, "--origin", "3000", "--host", "secret", "--log-level", "debug")
    with Command("edgetun-agent", "--state", str(tmp_path), *flags) as agent:
        agent.line("ready in")
        command_line = Path(f"/proc/{agent.process.pid}/cmdline").read_bytes().decode()
        assert "--origin" in command_line
        assert secret_of(token) not in command_line
        visit(server.port, host="secret.localhost", Authorization=f"Bearer {token}")
        assert agent.stop() == ExitCode.OK
        for made in server.tokens:
            assert secret_of(made) not in agent.said
    for made in server.tokens:
        assert secret_of(made) not in server.command.said
        stored = b"".join(path.read_bytes() for path in server.state.rglob("*") if path.is_file())
        assert secret_of(made).encode() not in stored


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("token", "create", "--state", "EMPTY"), "edgetun serve"),
        (("token", "list", "--state", "EMPTY"), "--state"),
        (("token", "revoke", "nobody"), 'there is no token "nobody"'),
        (("token", "revoke"), "TOKEN is missing"),
        (("token", "create", "--expires", "soon"), "--expires"),
        (("token", "create", "--url", "http://plain"), "https://HOST:PORT"),
        (("token", "create", "--tunnel", "shop"), "--tunnel"),
        (("token", "create", "--host", "a b"), "--host"),
        (("host", "release", "nobody.localhost"), "not claimed"),
        (("token",), "--help"),
        (("nonsense",), "nonsense"),
    ],
)
def test_wrong_input_of_token_and_host_is_exit_2(
    argv: tuple[str, ...], says: str, server: Server, tmp_path: Path
) -> None:
    words = [str(tmp_path / "empty") if word == "EMPTY" else word for word in argv]
    state = () if "--state" in argv or len(argv) == 1 else ("--state", str(server.state))
    done = run("edgetun", *words, *state)
    assert done.ended() == ExitCode.USAGE
    assert says in done.err
    assert "Traceback" not in done.err
