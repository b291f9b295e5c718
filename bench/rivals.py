"""The tunnels that people use today, each with both of its ends on the servers' core, as its own documents set it up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs12
from harness import HERE, Running, Site, Stage, free_port, get_status, is_echoing, is_listening, wait_until
from peers import require

from edgetun_core.pki import DevelopmentCA


@contextmanager
def frp(origin: Running, *, kind: str, transport: str, site: Site = HERE) -> Iterator[Running]:
    """`kind` is tcp (a raw pipe), udp, or http (it reads requests, as edgetun does); `transport` is tls (frp's default), quic or kcp."""
    bind, visitors = free_port(), free_port()
    with Stage() as stage:
        by_udp = transport in ("quic", "kcp")
        server = [f"bindPort = {bind}", f'bindAddr = "{site.listen}"', 'log.level = "warn"']
        client = [
            f'serverAddr = "{site.address}"',
            f"serverPort = {bind}",
            'log.level = "warn"',
            f'transport.protocol = "{transport if by_udp else "tcp"}"',
        ]
        if by_udp:
            server.append(f"{transport}BindPort = {bind}")
        else:
            client.append("transport.tls.enable = true")
        client += [
            "[[proxies]]",
            'name = "one"',
            f'type = "{kind}"',
            'localIP = "127.0.0.1"',
            f"localPort = {origin.port}",
        ]
        if kind == "http":
            server.append(f"vhostHTTPPort = {visitors}")
            client.append('customDomains = ["localhost", "127.0.0.1"]')
        else:
            client.append(f"remotePort = {visitors}")
        frps = stage.start("frps", [require("frps"), "-c", stage.write("frps.toml", "\n".join(server))])
        wait_until("frps", lambda: by_udp or is_listening(bind), [frps])
        command = [*site.to_agent, require("frpc"), "-c", stage.write("frpc.toml", "\n".join(client))]
        frpc = stage.start("frpc", command, core=site.agent_core)
        path = "/1" if origin.servers[0].name == "bulk-origin" else "/"
        if kind == "udp":
            wait_until("frp", lambda: is_echoing(visitors), [frps, frpc])
        else:
            wait_until("frp", lambda: get_status(visitors, path=path) == 200, [frps, frpc])
        yield Running(visitors, (frps, frpc), agents_port=bind)


@contextmanager
def rathole(origin: Running, *, site: Site = HERE) -> Iterator[Running]:
    """Over TLS, which wants its certificate as PKCS #12."""
    bind, visitors = free_port(), free_port()
    with Stage() as stage:
        ca = DevelopmentCA(stage.folder / "ca")
        identity = _pkcs12(*ca.issue(["localhost"]), password=b"bench")
        (stage.folder / "identity.pfx").write_bytes(identity)
        server = stage.write(
            "server.toml",
            f"""[server]
            bind_addr = "{site.listen}:{bind}"
            default_token = "bench"
            [server.transport]
            type = "tls"
            [server.transport.tls]
            pkcs12 = "{stage.folder}/identity.pfx"
            pkcs12_password = "bench"
            [server.services.one]
            bind_addr = "127.0.0.1:{visitors}"
            """,
        )
        client = stage.write(
            "client.toml",
            f"""[client]
            remote_addr = "{site.address}:{bind}"
            default_token = "bench"
            [client.transport]
            type = "tls"
            [client.transport.tls]
            trusted_root = "{ca.certificate_file}"
            hostname = "localhost"
            [client.services.one]
            local_addr = "127.0.0.1:{origin.port}"
            """,
        )
        env = {"RUST_LOG": "warn"}
        program = require("rathole")
        ends = stage.start("rathole-server", [program, "--server", server], env=env)
        wait_until("rathole server", lambda: is_listening(bind), [ends])
        command = [*site.to_agent, program, "--client", client]
        agent = stage.start("rathole-client", command, core=site.agent_core, env=env)
        path = "/1" if origin.servers[0].name == "bulk-origin" else "/"
        wait_until("rathole", lambda: get_status(visitors, path=path) == 200, [ends, agent])
        yield Running(visitors, (ends, agent), agents_port=bind)


@contextmanager
def chisel(origin: Running, *, site: Site = HERE) -> Iterator[Running]:
    """A reverse forwarding: ssh in a WebSocket over TLS, all visitors in one connection."""
    bind, visitors = free_port(), free_port()
    with Stage() as stage:
        program = require("chisel")
        ca = DevelopmentCA(stage.folder / "ca")
        certificate, key = ca.issue(["localhost"])
        (stage.folder / "key.pem").write_bytes(key)
        (stage.folder / "cert.pem").write_bytes(certificate)
        ends = stage.start(
            "chisel-server",
            [
                program, "server", "--host", site.listen, "--port", str(bind), "--reverse", "--auth", "bench:bench",
                "--tls-key", f"{stage.folder}/key.pem", "--tls-cert", f"{stage.folder}/cert.pem",
            ],
        )  # fmt: skip
        wait_until("chisel server", lambda: is_listening(bind), [ends])
        agent = stage.start(
            "chisel-client",
            [
                *site.to_agent, program, "client", "--auth", "bench:bench", "--tls-ca", str(ca.certificate_file), "--sni", "localhost",
                f"https://{site.address}:{bind}", f"R:127.0.0.1:{visitors}:127.0.0.1:{origin.port}",
            ],
            core=site.agent_core,
        )  # fmt: skip
        path = "/1" if origin.servers[0].name == "bulk-origin" else "/"
        wait_until("chisel", lambda: get_status(visitors, path=path) == 200, [ends, agent])
        yield Running(visitors, (ends, agent), agents_port=bind)


@contextmanager
def piko(origin: Running) -> Iterator[Running]:
    """One node and one agent; without TLS between them, which flatters it."""
    proxy, upstream, admin, gossip = (free_port() for _ in range(4))
    with Stage() as stage:
        program = require("piko")
        quiet = ["--log.level", "error"]
        # Without these it writes a line per request; nobody would run it so under load.
        server = stage.start(
            "piko-server",
            [
                program, "server", "--proxy.bind-addr", f"127.0.0.1:{proxy}", "--upstream.bind-addr", f"127.0.0.1:{upstream}",
                "--admin.bind-addr", f"127.0.0.1:{admin}", "--cluster.gossip.bind-addr", f"127.0.0.1:{gossip}",
                "--proxy.access-log=false", "--usage.disable", *quiet,
            ],
        )  # fmt: skip
        wait_until("piko server", lambda: is_listening(upstream), [server])
        agent = stage.start(
            "piko-agent",
            [
                program, "agent", "http", "bench", f"127.0.0.1:{origin.port}", "--connect.url", f"http://127.0.0.1:{upstream}",
                "--access-log=false", *quiet,
            ],
        )  # fmt: skip
        wait_until("piko", lambda: get_status(proxy, host="bench.piko") == 200, [server, agent])
        yield Running(proxy, (server, agent), host="bench.piko")


def _pkcs12(cert_pem: bytes, key_pem: bytes, *, password: bytes) -> bytes:
    leaf, *chain = x509.load_pem_x509_certificates(cert_pem)
    key = serialization.load_pem_private_key(key_pem, None)
    return pkcs12.serialize_key_and_certificates(
        b"bench",
        key,  # type: ignore[arg-type]
        leaf,
        chain,
        serialization.BestAvailableEncryption(password),
    )
