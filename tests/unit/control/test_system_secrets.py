"""What control takes from the system's own Secrets, as its watches bring them."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from edgetun_cluster.kinds import Key, Object
from edgetun_cluster.system_secrets import (
    CA_SECRET,
    CONTROL_TLS_SECRET,
    SIGNING_KEYS_SECRET,
    rotate_seeds,
    seeds_to_data,
)
from edgetun_control.stores.kubernetes import KubernetesStore


class Secrets:
    def __init__(self) -> None:
        self.store = KubernetesStore(None, "edgetun-system")  # type: ignore[arg-type]
        self.told = 0
        self.store.watch_secrets(self._tell)
        self._version = 0
        self.objects: dict[str, Object] = {}

    def _tell(self) -> None:
        self.told += 1

    def put(self, name: str, data: dict[str, Any]) -> None:
        self._version += 1
        meta = {"name": name, "namespace": "edgetun-system", "resourceVersion": str(self._version)}
        self.objects[name] = {"metadata": meta, "data": data}
        informer: Any = self.store._system_secrets[name]
        informer._put(msgspec.json.decode(msgspec.json.encode(self.objects[name])))

    def drop(self, name: str) -> None:
        informer: Any = self.store._system_secrets[name]
        informer._remove(Key("edgetun-system", name))


def encoded(**values: bytes) -> dict[str, str]:
    return {name.replace("_", "."): base64.b64encode(value).decode() for name, value in values.items()}


def test_secrets_are_taken_as_they_come_and_whoever_uses_them_hears_of_each() -> None:
    secrets = Secrets()
    store = secrets.store
    secrets.put(CA_SECRET, encoded(ca_crt=b"ca", ca_key=b"key"))
    secrets.put(CONTROL_TLS_SECRET, encoded(tls_crt=b"crt", tls_key=b"key"))
    assert not store.secrets.is_whole
    seeds = rotate_seeds((), 1000.0, lambda n: bytes(n))
    secrets.put(SIGNING_KEYS_SECRET, seeds_to_data(seeds))
    assert store.secrets.is_whole
    assert secrets.told == 3
    assert len(store.state.signing_keys) == 1
    seeds = rotate_seeds(seeds, 10_000_000.0, lambda n: b"\1" * n)
    secrets.put(SIGNING_KEYS_SECRET, seeds_to_data(seeds))
    assert [key.key_id for key in store.state.signing_keys] == [seed.key_id for seed in seeds]
    assert secrets.told == 4
    secrets.put(SIGNING_KEYS_SECRET, seeds_to_data(seeds))  # labels, say
    assert secrets.told == 4


@pytest.mark.parametrize("how", ["gone", "damaged", "empty"])
def test_what_is_gone_or_damaged_stays_as_it_was(how: str, caplog: pytest.LogCaptureFixture) -> None:
    secrets = Secrets()
    secrets.put(CA_SECRET, encoded(ca_crt=b"ca", ca_key=b"key"))
    secrets.put(CONTROL_TLS_SECRET, encoded(tls_crt=b"crt", tls_key=b"key"))
    secrets.put(SIGNING_KEYS_SECRET, seeds_to_data(rotate_seeds((), 1000.0, lambda n: bytes(n))))
    before, told = secrets.store.secrets, secrets.told
    for name in (CA_SECRET, CONTROL_TLS_SECRET, SIGNING_KEYS_SECRET):
        if how == "gone":
            secrets.drop(name)
        else:
            secrets.put(name, {"ca.crt": "%%%"} if how == "damaged" else {})
    assert secrets.store.secrets == before
    assert secrets.told == told
    assert ("cannot be read" in caplog.text) is (how == "damaged")
