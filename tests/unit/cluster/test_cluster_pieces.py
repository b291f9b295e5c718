"""Paths, errors, rotation and what is imported by whom."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgetun_cluster.backoff import Backoff
from edgetun_cluster.client import _event
from edgetun_cluster.errors import (
    AlreadyExists,
    ApiAbsent,
    ApiRefused,
    Conflict,
    Forbidden,
    ObjectNotFound,
    ResourceVersionGone,
    refused,
)
from edgetun_cluster.kinds import CONFIG_MAP, EXIT_POOL, TUNNEL
from edgetun_cluster.system_secrets import (
    KEY_LIFETIME_S,
    OLD_KEY_KEPT_S,
    rotate_seeds,
    seeds_to_data,
    signing_keys,
    signing_seeds,
    system_secret,
)


def test_paths_are_those_of_the_api_server() -> None:
    assert CONFIG_MAP.path("default", "a") == "/api/v1/namespaces/default/configmaps/a"
    assert TUNNEL.path() == "/apis/edgetun.dev/v1alpha1/tunnels"
    assert EXIT_POOL.path("", "p", "status") == "/apis/edgetun.dev/v1alpha1/exitpools/p/status"
    assert "%2F" in CONFIG_MAP.path("default", "../secrets")
    with pytest.raises(ValueError, match="namespace"):
        TUNNEL.path("", "a")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, None, ApiAbsent),
        (404, {"kind": "Status", "reason": "NotFound", "details": {"name": "a"}}, ObjectNotFound),
        (409, {"kind": "Status", "reason": "AlreadyExists"}, AlreadyExists),
        (409, {"kind": "Status", "reason": "Conflict"}, Conflict),
        (410, {"kind": "Status", "reason": "Expired"}, ResourceVersionGone),
        (403, {"kind": "Status", "reason": "Forbidden"}, Forbidden),
        (500, {"kind": "Status"}, ApiRefused),
    ],
)
def test_answers_become_typed_errors(status: int, body: dict[str, object] | None, kind: type[ApiRefused]) -> None:
    assert type(refused(status, body)) is kind


def test_a_watch_that_is_too_far_behind_says_so_inside_its_stream() -> None:
    with pytest.raises(ResourceVersionGone):
        _event(b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}}')


def test_waits_grow_to_their_bound_and_start_anew() -> None:
    backoff = Backoff(1.0, 10.0, lambda: 1.0)
    assert [backoff.next_s() for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    backoff.reset()
    assert backoff.next_s() == 1
    lowest = Backoff(1.0, 10.0, lambda: 0.0)
    assert lowest.next_s() == 0.5


def test_signing_keys_are_made_kept_and_replaced_in_time() -> None:
    count = iter(range(100))

    def random_bytes(size: int) -> bytes:
        return bytes([next(count)]) * size

    first = rotate_seeds((), 0.0, random_bytes)
    assert len(first) == 1
    assert rotate_seeds(first, KEY_LIFETIME_S, random_bytes) == first
    both = rotate_seeds(first, KEY_LIFETIME_S + 1, random_bytes)
    assert both[0] == first[0]
    assert len(both) == 2
    assert rotate_seeds(both, KEY_LIFETIME_S + OLD_KEY_KEPT_S, random_bytes) == both
    assert rotate_seeds(both, KEY_LIFETIME_S + OLD_KEY_KEPT_S + 2, random_bytes) == both[1:]
    secret = system_secret("edgetun-signing-keys", "ns", seeds_to_data(both))
    assert signing_seeds(secret) == both
    assert [key.key_id for key in signing_keys(secret)] == [seed.key_id for seed in both]


@pytest.mark.parametrize("module", ["edgetun_agent.main", "edgetun_exitnode.main", "edgetun.cli"])
def test_nothing_of_kubernetes_is_imported_by_what_runs_without_it(module: str) -> None:
    code = f"import sys, {module}; print(*(m for m in ('kubernetes', 'kopf', 'edgetun_cluster') if m in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert ran.stdout.strip() == ""


def test_in_a_pod_the_operator_reads_no_kubeconfig_library() -> None:
    code = "import sys, edgetun_cluster.connection, edgetun_cluster.informer; print('kubernetes' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert ran.stdout.strip() == "False"
