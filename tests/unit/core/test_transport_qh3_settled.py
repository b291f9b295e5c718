"""A listener's qh3 connection keeps of its TLS what it still needs, and no more."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import pytest
from qh3 import tls

from edgetun_core.transport.quic_qh3_settled import Settled
from support.quic_pair import QuicPair

UNEXPECTED_MESSAGE = 0x100 + 10
"""RFC 9001 §4.8, RFC 8446 §6."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("authority")


def contexts() -> int:
    return sum(type(kept) is tls.Context for kept in gc.get_objects())


@pytest.mark.parametrize("is_visitor", [False, True])
def test_the_handshakes_state_is_gone_without_the_garbage_collector(folder: Path, is_visitor: bool) -> None:
    gc.collect()
    gc.disable()
    try:
        before = contexts()
        pair = QuicPair(folder, random.Random(1), visitor=is_visitor)
        pair.write(pair.dialler, 0, 100)
        assert pair.finish(5.0)
        assert contexts() == before + 1, "the dialler's: tickets come to it"
    finally:
        gc.enable()
    settled = pair.listener.quic._tls
    assert isinstance(settled, Settled)
    assert pair.listener.quic.get_cipher() is settled.cipher_suite is not None
    assert pair.listener.quic.get_peercert() is None
    assert not pair.listener.quic.is_resumed
    pair.write(pair.listener, 0, 300_000)
    assert pair.finish(20.0)


def test_a_client_that_goes_on_with_its_handshake_is_refused(folder: Path) -> None:
    pair = QuicPair(folder, random.Random(2))
    pair.write(pair.dialler, 0, 100)
    assert pair.finish(5.0)
    key_update = b"\x18\x00\x00\x01\x00"  # RFC 9001 §6: not in QUIC
    pair.dialler.quic._core.send_crypto(int(tls.Epoch.ONE_RTT), 0, key_update)
    pair.transmit(pair.dialler)
    pair.go_on(1.0)
    for side in (pair.listener, pair.dialler):
        ended = side.quic.ended
        assert ended is not None
        assert ended.code == UNEXPECTED_MESSAGE


def test_a_connection_that_is_let_go_has_nothing_left(folder: Path) -> None:
    pair = QuicPair(folder, random.Random(3))
    pair.write(pair.dialler, 0, 100)
    assert pair.finish(5.0)
    pair.listener.quic.let_go()
    assert pair.listener.quic._tls is None
    assert pair.listener.quic.get_cipher() is None
