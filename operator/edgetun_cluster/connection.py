"""Where the API server is and who we are there: a pod's ServiceAccount, or a kubeconfig.

In a pod nothing of the `kubernetes` package is imported (half a second and 20 MB); a kubeconfig is read by it, since that knows
every way to log in that people have in there.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import yaml

from edgetun_core.errors import ConfigError

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_READ_EVERY_S: Final = 60.0
"""The kubelet renews a pod's token long before it ends, so a copy of this age is good."""

TokenSource = Callable[[], Awaitable[str]]
"""Gives the value of `Authorization`, or an empty text."""


class Connection(NamedTuple):
    """How to reach one API server as one identity."""

    server: str
    tls: ssl.SSLContext | None
    authorization: TokenSource
    namespace: str
    """Where we are ourselves: the pod's namespace, or the context's."""
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None


async def connect(
    kubeconfig: Path | None, environ: Mapping[str, str] = os.environ, account: Path = ACCOUNT
) -> Connection:
    """From a kubeconfig when one is given (or named by KUBECONFIG), else as the pod that this is. Raises `ConfigError`."""
    if kubeconfig is None and environ.get("KUBECONFIG"):
        kubeconfig = Path(environ["KUBECONFIG"])
    if kubeconfig is not None:
        return await from_kubeconfig(kubeconfig)
    return in_cluster(environ, account)


def in_cluster(environ: Mapping[str, str], account: Path = ACCOUNT) -> Connection:
    """As a pod's ServiceAccount. Raises `ConfigError` outside of one."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    token_file, ca_file = account / "token", account / "ca.crt"
    if not host or not token_file.is_file():
        raise ConfigError("this is no pod with a ServiceAccount", remedy="give --kubeconfig FILE, or set KUBECONFIG")
    try:
        namespace = (account / "namespace").read_text().strip()
        tls = ssl.create_default_context(cafile=str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"the ServiceAccount's files in {account} cannot be used: {error}") from error
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return Connection(server, tls, _TokenFile(token_file).authorization, namespace, ca_file=str(ca_file))


class _TokenFile:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._value = ""
        self._read_at = float("-inf")

    async def authorization(self) -> str:
        now = time.monotonic()
        if now - self._read_at > TOKEN_READ_EVERY_S:
            try:
                self._value = f"Bearer {self._path.read_text().strip()}"
                self._read_at = now
            except OSError as error:
                if not self._value:
                    raise ConfigError(f"{self._path} cannot be read: {error.strerror}") from error
        return self._value


async def from_kubeconfig(path: Path) -> Connection:
    """The current context of a kubeconfig. Raises `ConfigError`."""
    from kubernetes.aio.client import Configuration
    from kubernetes.aio.config import ConfigException, load_kube_config

    configuration = Configuration()
    try:
        await load_kube_config(  # type: ignore[no-untyped-call]
            config_file=str(path), client_configuration=configuration, persist_config=False
        )
        namespace = _context_namespace(path)
        tls = _context(configuration) if configuration.host.startswith("https") else None
    except (ConfigException, OSError, ValueError, KeyError, AttributeError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f"kubeconfig {path}: {error}", remedy="try it with kubectl") from error

    async def authorization() -> str:
        key = await configuration.get_api_key_with_prefix("BearerToken")  # renews it when it is about to end
        if not key and configuration.username:
            key = configuration.get_basic_auth_token()
        return str(key or "")

    return Connection(
        configuration.host.rstrip("/"),
        tls,
        authorization,
        namespace,
        configuration.ssl_ca_cert,
        configuration.cert_file,
        configuration.key_file,
    )


def _context_namespace(path: Path) -> str:
    config = yaml.safe_load(path.read_text())
    for context in config.get("contexts") or ():
        if context.get("name") == config.get("current-context"):
            return str(context["context"].get("namespace") or "default")
    return "default"


def _context(configuration: object) -> ssl.SSLContext:
    ca_file = getattr(configuration, "ssl_ca_cert", None)
    context = ssl.create_default_context(cafile=ca_file)
    cert_file = getattr(configuration, "cert_file", None)
    if cert_file:
        context.load_cert_chain(cert_file, getattr(configuration, "key_file", None))
    if not getattr(configuration, "verify_ssl", True):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
