"""The own CA and its successor: when each step is taken, and that nobody who trusts either one is left out on the way."""

from __future__ import annotations

import socket
import ssl
import threading
import time

import pytest

from edgetun_cluster.kinds import Object
from edgetun_cluster.system_secrets import secret_data, system_secret
from edgetun_core.errors import ConfigError
from edgetun_core.pki import ServerIdentity, Trust, certificates_der, fingerprint, first_certificate
from edgetun_operator.decide.ca import HEARD_AFTER_S, RENEW_BEFORE_S, RETIRE, ROTATE, SINCE, CaSeen, decide_ca_step
from edgetun_operator.reconcile.own_ca import OwnCA
from edgetun_operator.reconcile.rotate_ca import see_ca, take_step

NOW = time.time()
FAR = NOW + 5 * RENEW_BEFORE_S


@pytest.mark.parametrize(
    ("seen", "step"),
    [
        (CaSeen(FAR), None),
        (CaSeen(FAR, rotate="false"), None),
        (CaSeen(FAR, rotate="true"), "introduce"),
        (CaSeen(FAR, rotate="now"), "introduce"),
        (CaSeen(NOW + RENEW_BEFORE_S - 1, lasts_s=10 * RENEW_BEFORE_S), "introduce"),
        (CaSeen(NOW + 30 * 86400, lasts_s=90 * 86400), None),  # somebody brings short-lived ones of their own
        (CaSeen(FAR, has_next=True, introduced=NOW), None),
        (CaSeen(FAR, rotate="now", has_next=True, introduced=NOW), "switch"),
        (CaSeen(FAR, has_next=True, introduced=NOW - HEARD_AFTER_S), "switch"),
        (CaSeen(FAR, old_ends=(FAR,)), None),
        (CaSeen(FAR, old_ends=(FAR,), retire="true"), "retire"),
        (CaSeen(FAR, old_ends=(NOW - 1,)), "retire"),
        (CaSeen(FAR, retire="true"), None),
    ],
)
def test_each_step_is_taken_in_its_time(seen: CaSeen, step: str | None) -> None:
    assert decide_ca_step(seen, NOW) == step


def annotated(secret: Object, **notes: str) -> Object:
    secret["metadata"].setdefault("annotations", {}).update(notes)
    return secret


def own_ca(secret: Object) -> OwnCA:
    ca = OwnCA()
    assert ca.take(secret)
    return ca


def shakes_hands(leaf: dict[str, bytes], trust: bytes) -> bool:
    """Whether who trusts only these CAs accepts a server with the leaf, in a real handshake."""
    server = ServerIdentity(leaf["tls.crt"], leaf["tls.key"]).ssl_context()
    client = Trust(trust).ssl_context()
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            with server.wrap_socket(theirs, server_side=True) as connection:
                connection.recv(1)
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname="control.example") as connection:
            connection.sendall(b"x")
        return True
    except ssl.SSLCertVerificationError:
        return False
    finally:
        ours.close()
        thread.join(10)


def test_who_trusts_the_old_one_or_the_new_one_is_served_at_every_step_until_the_old_one_is_retired() -> None:
    secret = system_secret("edgetun-ca", "edgetun-system", OwnCA().make())
    old = secret_data(secret)["ca.crt"]
    names = ("control.example",)

    def leaf(of: Object) -> dict[str, bytes]:
        return secret_data({"metadata": {}, "data": own_ca(of).issue_leaf(names)})

    first = leaf(secret)
    assert shakes_hands(first, old)

    introduced = take_step(annotated(secret, **{ROTATE: "true"}), "introduce", NOW)
    bundle = secret_data(introduced)["ca.crt"]
    assert fingerprint(bundle) == fingerprint(old), "tokens pin the one that signs"
    assert len(certificates_der(bundle)) == 2
    assert introduced["metadata"]["annotations"] == {SINCE: str(int(NOW))}
    assert see_ca(introduced).has_next
    assert shakes_hands(leaf(introduced), old)
    assert not shakes_hands(leaf(introduced), secret_data(introduced)["next.crt"])

    switched = take_step(introduced, "switch", NOW)
    new = first_certificate(secret_data(switched)["ca.crt"])
    assert new == secret_data(introduced)["next.crt"]
    assert fingerprint(secret_data(switched)["ca.crt"]) == fingerprint(new)
    assert {"next.crt", "next.key"}.isdisjoint(secret_data(switched))
    assert switched["metadata"]["annotations"] == {}
    second = leaf(switched)
    assert shakes_hands(second, new), "a new token"
    assert shakes_hands(second, old), "a token that was given out before"
    assert shakes_hands(second, bundle), "an exit node that has heard of both"
    assert shakes_hands(first, secret_data(switched)["ca.crt"]), "an exit node with a certificate from before"
    assert not own_ca(switched).is_good(_secret(first), names, NOW), "what the old one signed is made anew"
    assert own_ca(switched).is_good(_secret(second), names, NOW)

    retired = take_step(annotated(switched, **{RETIRE: "true"}), "retire", NOW)
    third = leaf(retired)
    assert shakes_hands(third, new)
    assert not shakes_hands(third, old)
    assert decide_ca_step(see_ca(retired), NOW) is None


def test_a_second_rotation_keeps_the_tokens_of_the_first_good() -> None:
    secret = system_secret("edgetun-ca", "edgetun-system", OwnCA().make())
    oldest = secret_data(secret)["ca.crt"]
    for _ in range(2):
        secret = take_step(take_step(secret, "introduce", NOW), "switch", NOW)
    data = secret_data(secret)
    assert len(certificates_der(data["ca.crt"])) == 3
    assert len(set(certificates_der(data["ca.crt"]))) == 3
    leaf = secret_data({"metadata": {}, "data": own_ca(secret).issue_leaf(("control.example",))})
    middle = ssl.DER_cert_to_PEM_cert(certificates_der(data["ca.crt"])[1]).encode()
    assert shakes_hands(leaf, middle)
    assert not shakes_hands(leaf, oldest), "one CA vouches for its successor, and for no further one"


def test_a_damaged_secret_is_told_as_that() -> None:
    with pytest.raises(ConfigError, match="holds no CA"):
        see_ca({"metadata": {}, "data": {}})


def _secret(data: dict[str, bytes]) -> Object:
    from edgetun_cluster.system_secrets import to_data

    return {"metadata": {"name": "x"}, "data": to_data(data)}
