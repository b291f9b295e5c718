"""A real control server on a real TLS port, and agents that enroll with it."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from edgetun import tokens
from edgetun_agent.enroll import (
    AdHocTunnel,
    CertificateMismatch,
    ControlRefused,
    ControlUnreachable,
    CredentialKeeper,
    Endpoint,
    EnrollRequest,
    enroll,
    renew,
)
from edgetun_control.control import ControlSettings
from edgetun_control.folder_control import FolderControl
from edgetun_control.server import MAX_BODY_BYTES
from edgetun_core.credentials import ClusterToken, CredentialRevoked, CredentialVerifier
from edgetun_core.pki import DevelopmentCA

DEADLINE_S = 10.0
MANIFEST = """
apiVersion: edgetun.dev/v1alpha1
kind: Tunnel
metadata: {name: shop, namespace: team-a}
spec:
  hostnames: [www.shop.test]
  origin: {url: http://localhost:3000}
"""
WEB = AdHocTunnel("http://localhost:3000", host="shop")


class Server:
    """One control server on 127.0.0.1 with a CA of its own."""

    def __init__(self, state: Path, control: FolderControl, url: str) -> None:
        self.state = state
        self.control = control
        self.url = url

    def token(self, **options) -> ClusterToken:
        """A token as the command line makes it, while the server runs."""
        return ClusterToken.parse(tokens.create_token(self.state, control_urls=[self.url], **options)[1])

    @property
    def verifier(self) -> CredentialVerifier:
        snapshot = self.control.publisher.snapshot
        return CredentialVerifier(snapshot.credential_keys, snapshot.revoked_tokens)

    async def until(self, holds) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not holds():  # noqa: ASYNC110  # files and sockets tell nobody
                await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(state: Path, *, domain: str = "tunnel.test", ca: DevelopmentCA | None = None, port: int = 0):
    authority = ca or DevelopmentCA(state / "ca")
    control = FolderControl(
        state, ControlSettings(domain=domain, own_hostnames=frozenset({"edge.test"})), ca_pem=authority.ca_pem
    )
    await control.start()
    context = authority.identity(["127.0.0.1"]).ssl_context(["http/1.1"])
    listener = await asyncio.get_running_loop().create_server(control.make_protocol, "127.0.0.1", port, ssl=context)
    try:
        port = listener.sockets[0].getsockname()[1]
        control.placement.endpoints = (Endpoint("127.0.0.1", port, 0, node="n1"),)
        yield Server(state, control, f"https://127.0.0.1:{port}")
    finally:
        listener.close()
        await control.close()
        await listener.wait_closed()


@pytest.fixture
async def server(tmp_path):
    async with serving(tmp_path / "state") as running:
        yield running


def ask(**changes) -> EnrollRequest:
    return EnrollRequest(**{"agent_id": "laptop", "adhoc": WEB} | changes)


async def test_an_agent_gets_a_credential_an_endpoint_and_its_tunnel(server):
    token = server.token()
    enrollment = await enroll(token, ask())
    assert enrollment.endpoints == server.control.placement.endpoints
    [tunnel] = enrollment.tunnels
    assert tunnel.hostnames == ("shop.tunnel.test",)
    assert tunnel.origins[0].url == "http://localhost:3000"
    assert tunnel in server.control.publisher.snapshot.tunnels
    claims = server.verifier.verify(enrollment.credential, time.time())
    assert (claims.agent_id, claims.token_id, claims.services) == ("laptop", token.token_id, (tunnel.id,))
    assert 1700 < enrollment.renew_after_s < 1801
    assert abs(enrollment.server_time_skew_s) < 5
    assert enrollment.trust.ca_pem == DevelopmentCA(server.state / "ca").ca_pem
    assert token.format()[20:] not in repr(enrollment)
    assert enrollment.credential not in repr(enrollment)


async def test_an_agent_without_wishes_gets_the_tunnels_of_manifests_that_its_token_allows(server):
    (server.state / "tunnels" / "shop.yaml").write_text(MANIFEST)
    await server.until(lambda: server.control.publisher.manifest_tunnels)
    allowed = server.token(tunnels=["team-a/*"])
    assert [tunnel.id for tunnel in (await enroll(allowed, ask(adhoc=None))).tunnels] == ["team-a/shop"]
    other = server.token(tunnels=["team-b/*"])
    with pytest.raises(ControlRefused, match="may serve") as caught:
        await enroll(other, ask(adhoc=None))
    assert caught.value.reason == "NothingToServe"


async def test_an_agent_that_carries_no_tcp_gets_the_other_tunnels(server):
    """One of an older version would stop at an origin that it does not understand."""
    database = MANIFEST.replace("shop, ", "db, ").replace(
        "  hostnames: [www.shop.test]\n  origin: {url: http://localhost:3000}",
        "  tcp: {port: 15432}\n  origin: {url: tcp://localhost:5432}",
    )
    (server.state / "tunnels" / "both.yaml").write_text(f"{MANIFEST}---{database}")
    await server.until(lambda: len(server.control.publisher.manifest_tunnels) == 2)
    token = server.token(tunnels=["team-a/*"])
    old = await enroll(token, ask(adhoc=None))
    assert [tunnel.id for tunnel in old.tunnels] == ["team-a/shop"]
    new = await enroll(token, ask(adhoc=None, carries=("tcp", "udp")))
    assert [tunnel.id for tunnel in new.tunnels] == ["team-a/db", "team-a/shop"]
    assert new.tunnels[0].address_names == ("tcp/15432",)
    with pytest.raises(ControlRefused) as caught:
        await enroll(token, ask(adhoc=None, want=("team-a/db",)))
    assert caught.value.reason == "TunnelNotServed"


async def test_more_tunnels_than_fit_a_credential_are_told_as_that(server):
    names = [f"{'long-' * 30}{number}" for number in range(150)]
    text = "---".join(
        MANIFEST.replace("name: shop", f"name: {name}").replace("www.shop.test", f"h{number}.test")
        for number, name in enumerate(names)
    )
    (server.state / "tunnels" / "many.yaml").write_text(text)
    await server.until(lambda: len(server.control.publisher.manifest_tunnels) == len(names))
    with pytest.raises(ControlRefused, match="asks for 150 tunnels") as caught:
        await enroll(server.token(), ask(adhoc=None))
    assert caught.value.reason == "TooManyTunnels"


async def test_another_ca_in_the_middle_never_sees_the_token(tmp_path, server):
    token = server.token()
    received = bytearray()

    class Eavesdropper(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            received.extend(data)
            body = impostor.ca_pem
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    impostor = DevelopmentCA(tmp_path / "impostor")
    await _expect_mismatch(token, impostor, Eavesdropper, "has another CA than the token names; the token was not sent")
    assert b"GET /ca.pem" in received
    assert b"edgetun_" not in received


async def test_an_impostor_that_repeats_the_public_ca_certificate_never_sees_the_token_either(tmp_path, server):
    token = server.token()
    received = bytearray()
    genuine = DevelopmentCA(server.state / "ca").ca_pem

    class Eavesdropper(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            received.extend(data)
            # The right one, and the impostor's own behind it: only what is pinned may be trusted.
            body = genuine + impostor.ca_pem
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    impostor = DevelopmentCA(tmp_path / "impostor")
    await _expect_mismatch(token, impostor, Eavesdropper, "not signed by the CA that this token trusts")
    assert b"edgetun_" not in received


async def _expect_mismatch(token, impostor, protocol, message):
    context = impostor.identity(["127.0.0.1"]).ssl_context(["http/1.1"])
    listener = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0, ssl=context)
    try:
        port = listener.sockets[0].getsockname()[1]
        intercepted = ClusterToken((f"https://127.0.0.1:{port}",), token.token_id, token.secret, token.ca_fingerprint)
        with pytest.raises(CertificateMismatch, match=message):
            await enroll(intercepted, ask())
    finally:
        listener.close()
        await listener.wait_closed()


async def test_a_revoked_token_is_in_the_snapshot_within_two_seconds_and_is_refused(server):
    token = server.token(label="ci")
    enrollment = await enroll(token, ask())
    snapshots = []
    server.control.publisher.subscribe(snapshots.append)
    begun = time.monotonic()
    tokens.revoke_token(server.state, "ci")
    await server.until(lambda: token.token_id in snapshots[-1].revoked_tokens)
    assert time.monotonic() - begun < 2.0
    with pytest.raises(CredentialRevoked):
        server.verifier.verify(enrollment.credential, time.time())
    with pytest.raises(ControlRefused, match="was revoked; ask for a new one") as caught:
        await renew(token, ask())
    assert caught.value.reason == "TokenRevoked"
    assert caught.value.is_final
    await server.until(lambda: not server.control.publisher.snapshot.tunnels)


async def test_a_token_whose_file_is_deleted_ends_too_and_stays_ended_after_a_restart(tmp_path):
    state = tmp_path / "state"
    async with serving(state) as server:
        token = server.token()
        enrollment = await enroll(token, ask())
        (state / "tokens" / f"{token.token_id}.json").unlink()
        await server.until(lambda: token.token_id in server.control.publisher.snapshot.revoked_tokens)
    async with serving(state) as server:
        with pytest.raises(CredentialRevoked):
            server.verifier.verify(enrollment.credential, time.time())
        with pytest.raises(ControlRefused, match="does not know the cluster token") as caught:
            await enroll(ClusterToken((server.url,), token.token_id, token.secret, token.ca_fingerprint), ask())
        assert caught.value.reason == "TokenUnknown"


async def test_a_token_deleted_while_no_server_runs_ends_at_the_next_start(tmp_path):
    state = tmp_path / "state"
    async with serving(state) as server:
        token = server.token()
        await enroll(token, ask())
    (state / "tokens" / f"{token.token_id}.json").unlink()
    async with serving(state) as server:
        assert server.control.publisher.snapshot.revoked_tokens == (token.token_id,)


async def test_a_name_belongs_to_the_token_that_came_first_even_when_that_one_is_gone(server):
    first, second = server.token(label="first"), server.token(label="second")
    await enroll(first, ask())
    with pytest.raises(ControlRefused) as caught:
        await enroll(second, ask())
    assert caught.value.reason == "NameTaken"
    assert str(caught.value) == "the name shop.tunnel.test belongs to another token; choose another --host"
    tokens.revoke_token(server.state, "first", delete=True)
    await server.until(lambda: server.control.publisher.snapshot.revoked_tokens)
    with pytest.raises(ControlRefused, match="belongs to another token"):
        await enroll(second, ask())
    tokens.release_host(server.state, "shop.tunnel.test")
    await server.until(lambda: not server.control.store.state.claims)
    assert (await enroll(second, ask())).tunnels[0].hostnames == ("shop.tunnel.test",)


async def test_agents_who_race_for_a_name_get_it_once(server):
    rivals = [server.token() for _ in range(6)]
    outcomes = await asyncio.gather(*(enroll(rival, ask()) for rival in rivals), return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ControlRefused"] * 5 + ["Enrollment"]


async def test_without_a_host_the_name_is_generated_and_stays_over_a_restart_of_both(tmp_path):
    state = tmp_path / "state"
    names = []
    for _ in range(2):
        async with serving(state) as server:
            if not names:
                token = server.token()
            here = ClusterToken((server.url,), token.token_id, token.secret, token.ca_fingerprint)
            enrollment = await enroll(here, ask(adhoc=AdHocTunnel("http://localhost:3000")))
            names.append(enrollment.tunnels[0].hostnames[0])
    assert names[0] == names[1]
    assert names[0].endswith(".tunnel.test")


async def test_renewing_gets_a_new_credential_and_leaves_the_snapshot_alone(server):
    token = server.token()
    first = await enroll(token, ask())
    version = server.control.publisher.snapshot.version
    second = await renew(token, ask())
    assert second.tunnels == first.tunnels
    server.verifier.verify(second.credential, time.time())
    assert server.control.publisher.snapshot.version == version


async def test_the_keeper_renews_and_gets_over_a_time_without_control(tmp_path):
    state = tmp_path / "state"
    async with serving(state) as server:
        token = server.token()
        port = int(server.url.rpartition(":")[2])
        enrollment = await enroll(token, ask())
    soon = type(enrollment)(
        **{name: getattr(enrollment, name) for name in enrollment.__slots__} | {"renew_after_s": 0.0}
    )
    renewed, failures = [], []
    keeper = CredentialKeeper(
        soon,
        lambda: renew(token, ask(), timeout_s=2),
        on_renewed=renewed.append,
        on_failed=failures.append,
        rng=random.Random(1),
    )
    running = asyncio.create_task(keeper.run())
    try:
        await server.until(lambda: failures)
        assert isinstance(failures[0], ControlUnreachable)
        assert keeper.current() is soon
        async with serving(state, port=port):
            await server.until(lambda: renewed)
        assert keeper.current() is renewed[0]
        assert keeper.current().credential != soon.credential
    finally:
        running.cancel()


async def test_a_token_counts_from_the_moment_it_is_made(server):
    for number in range(5):
        await enroll(server.token(), ask(adhoc=AdHocTunnel("http://localhost:3000", host=f"shop-{number}")))


async def test_a_wrong_secret_is_refused_and_whoever_goes_on_trying_is_told_to_wait(server):
    token = server.token()
    wrong = ClusterToken(token.control_urls, token.token_id, bytes(32), token.ca_fingerprint)
    reasons = []
    for _ in range(25):
        with pytest.raises(ControlRefused) as caught:
            await enroll(wrong, ask())
        reasons.append(caught.value.reason)
    assert reasons[0] == "TokenUnknown"
    assert reasons[-1] == "TooManyAttempts"
    await enroll(token, ask())  # whoever has a good token is not kept out by a neighbour


async def test_control_that_is_not_there_is_named_with_what_to_check(tmp_path, server):
    token = server.token()
    dead = ClusterToken(("https://127.0.0.1:1",), token.token_id, token.secret, token.ca_fingerprint)
    with pytest.raises(
        ControlUnreachable, match=r"https://127\.0\.0\.1:1 cannot be reached .*; check that the server runs"
    ):
        await enroll(dead, ask())


async def test_a_silent_control_url_costs_its_deadline_and_the_next_is_asked(server):
    token = server.token()
    silent = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    try:
        port = silent.sockets[0].getsockname()[1]
        both = ClusterToken(
            (f"https://127.0.0.1:{port}", server.url), token.token_id, token.secret, token.ca_fingerprint
        )
        assert (await enroll(both, ask(), timeout_s=0.5)).control_url == server.url
        lone = ClusterToken(both.control_urls[:1], token.token_id, token.secret, token.ca_fingerprint)
        with pytest.raises(ControlUnreachable, match=r"did not answer within 0\.2 s"):
            await enroll(lone, ask(), timeout_s=0.2)
    finally:
        silent.close()
        await silent.wait_closed()


async def test_a_certificate_for_another_name_is_told_as_that(server):
    token = server.token()
    elsewhere = ClusterToken(
        (server.url.replace("127.0.0.1", "localhost"),), token.token_id, token.secret, token.ca_fingerprint
    )
    with pytest.raises(ControlUnreachable, match="is not for that name"):
        await enroll(elsewhere, ask())


async def test_a_clock_that_is_years_off_is_told_as_that(tmp_path):
    ca = DevelopmentCA(tmp_path / "future", clock=lambda: time.time() + 40 * 86400)
    async with serving(tmp_path / "state", ca=ca) as server:
        token = server.token()
        pinned = ClusterToken(token.control_urls, token.token_id, token.secret, ca.fingerprint)
        with pytest.raises(ControlUnreachable, match="is not valid yet; set this machine's clock"):
            await enroll(pinned, ask())


async def test_no_log_line_holds_a_token_a_secret_or_a_credential(server, caplog):
    caplog.set_level(logging.DEBUG)
    token = server.token()
    enrollment = await enroll(token, ask())
    text = token.format()
    port = int(server.url.rpartition(":")[2])
    for raw in (
        b"POST /v1/register HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer " + text.encode() + b"\x00\r\n\r\n",
        b"POST /v1/register HTTP/1.1\r\nAuthorization Bearer " + text.encode() + b"\r\n\r\n",
        b"GET /" + text.encode() + b" HTTP/9.9\r\n\r\n",
        text.encode() + b"\r\n\r\n",
        b"POST /v1/register HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nAuthorization: Bearer "
        + text.encode()
        + b"\r\n\r\n{x}",
    ):
        answer = await _raw(server, port, raw)
        assert answer.startswith(b"HTTP/1.")
    wrong = ClusterToken(token.control_urls, token.token_id, bytes(32), token.ca_fingerprint)
    with pytest.raises(ControlRefused):
        await enroll(wrong, ask())
    for secret in (text[12:], text[-30:], token.secret.hex(), repr(token.secret)[2:-1], enrollment.credential[:40]):
        assert secret not in caplog.text
    state_files = b"".join(path.read_bytes() for path in server.state.rglob("*") if path.is_file())
    assert token.secret not in state_files
    assert token.secret.hex().encode() not in state_files
    assert text.encode() not in state_files


async def _raw(server: Server, port: int, data: bytes) -> bytes:
    context = DevelopmentCA(server.state / "ca").trust.ssl_context(["http/1.1"])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(data)
        async with asyncio.timeout(DEADLINE_S):
            head = await reader.readuntil(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            return head + await reader.readexactly(int(length[0].split(b":")[1]))
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except (ssl.SSLError, OSError):
            pass


@pytest.mark.parametrize(
    ("head", "body", "status", "reason"),
    [
        ("POST /v1/register", b"{}", 401, "TokenMissing"),
        ("POST /v1/register\nAuthorization: Bearer hunter2", b'{"agent_id":"a"}', 401, "TokenMistyped"),
        ("POST /v1/register\nAuthorization: Bearer hunter2", b"[", 400, "InvalidRequest"),
        ("POST /v1/register\nAuthorization: Bearer hunter2", b"[" * 60_000, 400, "InvalidRequest"),
        ("POST /v1/register\nAuthorization: Bearer hunter2", b'{"agent_id":"\xff"}', 400, "InvalidRequest"),
        ("POST /v1/register\nAuthorization: Bearer hunter2", b"x" * (MAX_BODY_BYTES + 1), 413, "BodyTooLarge"),
        ("GET /v1/register", b"", 405, "MethodNotAllowed"),
        ("GET /etc/passwd", b"", 404, "NotFound"),
    ],
)
async def test_every_failure_is_told_in_one_form(server, head, body, status, reason):
    first, *rest = head.split("\n")
    lines = [f"{first} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *rest, "", ""]
    answer = await _raw(server, int(server.url.rpartition(":")[2]), "\r\n".join(lines).encode() + body)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    told = msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])
    assert told["reason"] == reason
    assert told["message"]
    assert b"hunter2" not in answer


@pytest.mark.parametrize(
    "body",
    [
        {"agent_id": "laptop", "adhoc": {"origin_url": "http://localhost:3000", "host": "shop"}},
        {
            "agent_id": "laptop",
            "adhoc": {"origin_url": "http://localhost:3000", "host": "shop", "mood": 1},
            "gpus": [1],
        },
    ],
    ids=["an older agent", "a later agent"],
)
async def test_an_agent_of_another_version_registers_and_renews(server, body):
    port, token = int(server.url.rpartition(":")[2]), server.token().format()
    for path in ("/v1/register", "/v1/renew"):
        text = msgspec.json.encode(body)
        lines = [
            f"POST {path} HTTP/1.1",
            "Host: a",
            f"Content-Length: {len(text)}",
            f"Authorization: Bearer {token}",
            "",
            "",
        ]
        answer = await _raw(server, port, "\r\n".join(lines).encode() + text)
        assert answer.startswith(b"HTTP/1.1 200 ")
        told = msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])
        assert {"credential", "endpoints", "tunnels", "renew_after_s", "expires_in_s", "server_time"} <= set(told)


async def test_a_question_that_only_a_later_control_knows_is_told_as_that(server):
    port = int(server.url.rpartition(":")[2])
    head = f"POST /v2/register HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nAuthorization: Bearer {server.token().format()}\r\n\r\n"
    answer = await _raw(server, port, head.encode() + b"{}")
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert msgspec.json.decode(answer.partition(b"\r\n\r\n")[2])["reason"] == "NotFound"


async def test_a_token_over_plain_http_is_refused_and_said_to_be_burnt(tmp_path):
    control = FolderControl(tmp_path, ControlSettings(), ca_pem=None)
    await control.start()
    listener = await asyncio.get_running_loop().create_server(control.make_protocol, "127.0.0.1", 0)
    try:
        reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname()[:2])
        writer.write(b"POST /v1/register HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nAuthorization: Bearer x\r\n\r\n")
        answer = await asyncio.wait_for(reader.readuntil(b"}"), DEADLINE_S)
        assert b"TlsRequired" in answer
        assert b"revoke it" in answer
        writer.close()
        await writer.wait_closed()
    finally:
        listener.close()
        await control.close()
        await listener.wait_closed()


async def test_two_servers_never_share_a_state_folder(tmp_path):
    from edgetun_core.errors import ConfigError

    async with serving(tmp_path / "state"):
        second = FolderControl(tmp_path / "state", ControlSettings(), ca_pem=None)
        with pytest.raises(ConfigError, match="another edgetun server runs on the state folder"):
            await second.start()
        await second.close()


async def test_control_shares_the_port_of_the_sessions(tmp_path):
    from edgetun_core.transport.engines import listen

    state = tmp_path / "state"
    ca = DevelopmentCA(state / "ca")
    control = FolderControl(state, ControlSettings(domain="tunnel.test"), ca_pem=ca.ca_pem)
    await control.start()
    listener = await listen(
        "tls",
        "127.0.0.1",
        0,
        identity=ca.identity(["127.0.0.1"]),
        accept=lambda: pytest.fail("this is no session"),
        other_protocols={"http/1.1": control.make_protocol, "": control.make_protocol},
    )
    try:
        url = f"https://127.0.0.1:{listener.port}"
        control.placement.endpoints = (Endpoint("127.0.0.1", listener.port, 0),)
        token = ClusterToken.parse(tokens.create_token(state, control_urls=[url])[1])
        assert (await enroll(token, ask())).endpoints[0].tls_port == listener.port
        bare = ca.trust.ssl_context()  # as a browser or curl without ALPN comes
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port, ssl=bare)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), DEADLINE_S)).endswith(b"ok\n")
        writer.close()
        await writer.wait_closed()
    finally:
        await control.close()
        await listener.close()
