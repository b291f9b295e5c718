"""What a listener notes of its QUIC links, for the process after it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from edgetun_core.transport import quic_left
from edgetun_core.transport.quic_left import LeftLinks

FOUR, SIX = ("192.0.2.7", 4001), ("2001:db8::7", 4002)


def _cid(number: int) -> bytes:
    return number.to_bytes(8, "big")


def test_links_that_stand_are_found_by_the_next_process_and_those_that_ended_are_not(tmp_path: Path) -> None:
    first = LeftLinks(tmp_path / "links")
    assert first.found == []
    first.note(_cid(1), FOUR)
    first.note(_cid(2), SIX)
    first.note(_cid(3), ("192.0.2.8", 1))
    first.note(_cid(1), ("192.0.2.9", 4003))  # it has another address now
    first.forget(_cid(3))
    first.forget(_cid(3))
    first.note(_cid(4), ("::ffff:192.0.2.10", 4))
    first.close()
    second = LeftLinks(tmp_path / "links")
    assert second.found == [(("192.0.2.9", 4003), _cid(1)), (SIX, _cid(2)), (("::ffff:192.0.2.10", 4), _cid(4))]
    assert second.tokens.token(_cid(1)) == first.tokens.token(_cid(1))
    second.close()
    third = LeftLinks(tmp_path / "links")  # they are told once
    assert third.found == []
    third.close()


def test_the_file_is_its_owners_alone_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quic_left, "MAX_LINKS", 3)
    links = LeftLinks(tmp_path / "links")
    for number in range(10):
        links.note(_cid(number), FOUR)
    links.forget(_cid(1))
    links.note(_cid(20), FOUR)
    links.close()
    assert (tmp_path / "links").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "links").stat().st_size == 40 + 3 * 32
    again = LeftLinks(tmp_path / "links")
    assert [cid for _, cid in again.found] == [_cid(0), _cid(20), _cid(2)]
    again.close()


def test_a_file_that_is_held_is_another_processs(tmp_path: Path) -> None:
    links = LeftLinks(tmp_path / "links")
    links.note(_cid(1), FOUR)
    with pytest.raises(BlockingIOError):
        LeftLinks(tmp_path / "links")
    links.close()
    again = LeftLinks(tmp_path / "links")
    assert len(again.found) == 1
    again.close()


@pytest.mark.parametrize("content", [b"", b"x", b"no such file" * 50, os.urandom(500)])
def test_a_file_that_is_none_of_ours_is_written_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "links").write_bytes(content)
    links = LeftLinks(tmp_path / "links")
    assert links.found == []
    links.note(_cid(1), FOUR)
    links.close()
    again = LeftLinks(tmp_path / "links")
    assert len(again.found) == 1
    again.close()


def test_a_slot_that_was_half_written_is_left_out(tmp_path: Path) -> None:
    links = LeftLinks(tmp_path / "links")
    links.note(_cid(1), FOUR)
    links.note(_cid(2), SIX)
    links.close()
    content = (tmp_path / "links").read_bytes()
    (tmp_path / "links").write_bytes(content[:-5])
    again = LeftLinks(tmp_path / "links")
    assert again.found == [(FOUR, _cid(1))]
    again.close()


def test_a_full_disk_is_said_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    links = LeftLinks(tmp_path / "links")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with caplog.at_level(logging.WARNING):
        links.note(_cid(1), FOUR)
        links.note(_cid(2), FOUR)
        links.forget(_cid(1))
    links.close()
    assert len([record for record in caplog.records if "no longer noted" in record.message]) == 1
