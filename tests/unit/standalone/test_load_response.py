from __future__ import annotations

from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetun.load_response import (
    MAX_HEAD_BYTES,
    BadResponse,
    CutShort,
    ResponseReader,
    classify_cache_status,
)
from edgetun_core.memo import Memo


def reader(*, head_request: bool = False) -> ResponseReader:
    made = ResponseReader(Memo(16))
    made.begin(head_request=head_request)
    return made


def feed_in_steps(got: ResponseReader, response: bytes, step: int) -> None:
    for start in range(0, len(response), step):
        got.feed(response[start : start + step])


def digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=8).digest()


WHOLE = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nDigest: x\r\n\r\n",
    "after interim": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200\r\ncontent-length: 5\r\n\r\nhello",
}


@pytest.mark.parametrize("response", WHOLE.values(), ids=WHOLE.keys())
@given(data=st.data())
def test_any_split_of_the_bytes_reads_the_same(response: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(response) - 1), max_size=8)))
    pieces = [response[a:b] for a, b in zip([0, *cuts], [*cuts, len(response)], strict=True)]
    got = reader()
    assert [got.feed(piece) for piece in pieces] == [False] * len(cuts) + [True]
    assert got.info is not None
    assert (got.info.status, got.body_bytes, got.digest) == (200, 5, digest(b"hello"))
    assert got.info.keep_alive
    assert got.is_at_rest


def test_several_responses_on_one_connection_are_told_apart() -> None:
    got = reader()
    assert got.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na")
    first = got.digest
    got.begin(head_request=False)
    assert got.feed(b"HTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\nb")
    assert got.info is not None
    assert got.info.status == 404
    assert got.digest != first


def test_a_body_without_framing_ends_with_the_connection() -> None:
    got = reader()
    assert not got.feed(b"HTTP/1.0 200 OK\r\n\r\nhel")
    assert not got.feed(b"lo")
    assert got.end()
    assert got.info is not None
    assert (got.body_bytes, got.digest, got.info.keep_alive) == (5, digest(b"hello"), False)


@pytest.mark.parametrize("status", [204, 304])
def test_no_body_follows_a_status_that_has_none(status: int) -> None:
    assert reader().feed(f"HTTP/1.1 {status} x\r\n\r\n".encode())


def test_no_body_follows_the_head_of_an_answer_to_head() -> None:
    assert reader(head_request=True).feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")


def test_the_same_head_reads_otherwise_for_get_and_head_on_one_memo() -> None:
    memo: Memo[bytes, object] = Memo(16)
    block = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    for head_request, complete in ((True, True), (False, False), (True, True)):
        got = ResponseReader(memo)  # type: ignore[arg-type]
        got.begin(head_request=head_request)
        assert got.feed(block) is complete


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: foo, Close", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive", True),
    ],
)
def test_whether_the_connection_can_be_used_again(head: bytes, expected: bool) -> None:
    got = reader()
    assert got.feed(head + b"\r\n\r\n")
    assert got.info is not None
    assert got.info.keep_alive is expected


@pytest.mark.parametrize(
    "response",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\nY: b\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nmore",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nbad trailer\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 2000,
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * MAX_HEAD_BYTES,
    ],
)
@pytest.mark.parametrize("step", [7, 100_000])
def test_what_is_not_one_well_formed_response_is_refused(response: bytes, step: int) -> None:
    with pytest.raises(BadResponse):
        feed_in_steps(reader(), response, step)


def test_bytes_that_nobody_asked_for_are_refused() -> None:
    got = reader()
    assert got.feed(WHOLE["length"])
    with pytest.raises(BadResponse):
        got.feed(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("name", ["length", "chunked"])
@given(data=st.data())
def test_a_response_that_breaks_off_anywhere_is_cut_short(name: str, data: st.DataObject) -> None:
    got = reader()
    assert not got.feed(WHOLE[name][: data.draw(st.integers(0, len(WHOLE[name]) - 1))])
    with pytest.raises(CutShort):
        got.end()


def test_closing_between_two_responses_is_nobodys_fault() -> None:
    got = reader()
    assert got.feed(WHOLE["length"])
    assert not got.end()


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_garbage_is_refused_or_waits_for_more_and_nothing_else(pieces: list[bytes]) -> None:
    got = reader()
    try:
        for piece in [b"HTTP/1.1 200 OK\r\n", *pieces]:
            if got.feed(piece):
                return
        got.end()
    except (BadResponse, CutShort):
        pass


@pytest.mark.parametrize(
    ("field", "outcome"),
    [
        (b"edgetun; hit; ttl=1", "hit"),
        (b"edgetun; fwd=uri-miss; stored", "miss"),
        (b"edgetun;fwd=vary-miss", "miss"),
        (b"edgetun; fwd=uri-miss; collapsed", "collapsed"),
        (b"edgetun; fwd=uri-miss; collapsed=?0", "miss"),
        (b"edgetun; fwd=bypass; detail=no-store", "bypass"),
        (b"origin-cache; hit, edgetun; fwd=stale", "stale"),
        (b'edgetun; fwd=miss; key="a, b; hit"', "miss"),
        (b"edgetun", "other"),
    ],
)
def test_the_cache_nearest_to_the_visitor_tells_the_outcome(field: bytes, outcome: str) -> None:
    assert classify_cache_status(field) == outcome
