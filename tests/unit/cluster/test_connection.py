"""Who we are towards the API server: a pod's ServiceAccount, or what a kubeconfig says."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetun_cluster import connection
from edgetun_cluster.connection import connect
from edgetun_core.errors import ConfigError
from edgetun_core.pki import DevelopmentCA

IN_POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


@pytest.fixture
def account(tmp_path: Path) -> Path:
    folder = tmp_path / "account"
    folder.mkdir()
    (folder / "token").write_text("one\n")
    (folder / "namespace").write_text("edgetun-system\n")
    (folder / "ca.crt").write_bytes(DevelopmentCA(tmp_path / "ca").ca_pem)
    return folder


async def test_in_a_pod_the_account_says_who_we_are(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = await connect(None, IN_POD, account)
    assert (found.server, found.namespace) == ("https://10.96.0.1:443", "edgetun-system")
    assert await found.authorization() == "Bearer one"
    (account / "token").write_text("two")
    assert await found.authorization() == "Bearer one"  # a copy is good for a while
    monkeypatch.setattr(connection, "TOKEN_READ_EVERY_S", -1.0)
    assert await found.authorization() == "Bearer two"
    (account / "token").unlink()
    assert await found.authorization() == "Bearer two"  # until it is written again


async def test_an_ipv6_service_address_stands_in_brackets(account: Path) -> None:
    found = await connect(None, IN_POD | {"KUBERNETES_SERVICE_HOST": "fd00::1"}, account)
    assert found.server == "https://[fd00::1]:443"


async def test_elsewhere_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--kubeconfig"):
        await connect(None, {}, tmp_path)
    with pytest.raises(ConfigError, match="kubeconfig"):
        await connect(tmp_path / "none", {}, tmp_path)


async def test_a_kubeconfig_is_read_with_its_token_and_namespace(tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_bytes(DevelopmentCA(tmp_path / "ca").ca_pem)
    config = tmp_path / "config"
    config.write_text(f"""
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "https://api.example.com:6443", certificate-authority: {ca}}}}}]
users: [{{name: u, user: {{token: secret-text}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u, namespace: team-a}}}}]
current-context: x
""")
    for found in (await connect(config, {}), await connect(None, {"KUBECONFIG": str(config)})):
        assert (found.server, found.namespace) == ("https://api.example.com:6443", "team-a")
        assert await found.authorization() == "Bearer secret-text"
