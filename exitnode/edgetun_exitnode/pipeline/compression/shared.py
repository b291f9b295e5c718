"""One encoding of a stored or collapsed response for all who get it: ten thousand visitors cost one compression.

The cache marks the heads it answers with (`ResponseHead.view`) with the response they are of; whoever gets that response in the
same coding follows the same `SharedEncoding`. That is a list of steps, each the output for the input up to an offset. Whoever comes
to its end with more input adds a step, the others take what is there. How the input is cut does not matter: a step's output is
passed on when all of its input has come.

Bounds: encodings are kept for later visitors up to `max_bytes` together, the least recently used go first; one alone is kept
up to an eighth of that. One that grows beyond it is finished for those who follow it, whose steps go as they pass them. An encoding
does not keep its response, and goes with it: a page that is made anew every second has one encoding, not as many as fit.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from itertools import count
from typing import Final, Protocol
from weakref import ref

from edgetun_exitnode.pipeline.compression.encoders import ENCODE_WHOLE, Encoder, Encoders

MAX_BYTES: Final = 32 * 1024 * 1024
_OVERHEAD_BYTES: Final = 256


class Source(Protocol):
    """A response that is the same for many: the cache's `StoredResponse`."""

    encodings: dict[bytes, SharedEncoding] | None


class _Step:
    __slots__ = ("is_last", "next", "output", "until")

    def __init__(self, until: int, output: bytes, is_last: bool) -> None:
        self.until = until
        self.output = output
        self.is_last = is_last
        self.next: _Step | None = None


class SharedEncoding:
    """One response in one coding. `whole` is its encoded body once it is complete, `b""` when it does not get smaller."""

    __slots__ = ("coding", "encoder", "followers", "is_kept", "root", "serial", "size_bytes", "source", "whole")

    def __init__(self, coding: bytes, source: ref[Source], serial: int) -> None:
        self.coding = coding
        self.source = source
        self.serial = serial
        self.encoder: Encoder | None = None
        self.root: _Step | None = _Step(0, b"", False)
        """Before the first step; None when the encoding is not kept, so that what its followers have passed can go."""
        self.whole: bytes | None = None
        self.followers = 0
        self.is_kept = True
        self.size_bytes = _OVERHEAD_BYTES


class SharedEncodings:
    """All that one exit node keeps."""

    __slots__ = ("_kept", "_max_one_bytes", "_serials", "encoders", "max_bytes", "size_bytes")

    def __init__(self, encoders: Encoders, max_bytes: int = MAX_BYTES) -> None:
        self.encoders = encoders
        self.max_bytes = max_bytes
        self.size_bytes = 0
        self._max_one_bytes = max_bytes // 8
        self._kept: OrderedDict[int, SharedEncoding] = OrderedDict()
        """By serial."""
        self._serials = count()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, source: Source, coding: bytes) -> SharedEncoding | None:
        """The encoding of a response, if there is one."""
        found = source.encodings.get(coding) if source.encodings is not None else None
        if found is not None:
            self._kept.move_to_end(found.serial)
        return found

    def find_whole(self, source: Source, coding: bytes) -> bytes | None:
        """The complete encoding of a response; `b""` when it does not get smaller, None when it is not known yet."""
        found = self.find(source, coding)
        if found is None:
            return None
        if found.whole is None and found.encoder is None and found.root is not None:
            outputs: list[bytes] = []
            step: _Step | None = found.root
            while step is not None:
                outputs.append(step.output)
                step = step.next
            found.whole = b"".join(outputs)
            found.root = None  # from now on it is asked for in one piece
            self._grow(found, len(found.whole) + _OVERHEAD_BYTES - found.size_bytes)
        return found.whole

    def encode_whole(self, source: Source, coding: bytes, data: bytes) -> bytes:
        """The whole body at once; `b""` when it does not get smaller."""
        output = ENCODE_WHOLE[coding](data)
        if len(output) >= len(data):
            output = b""
        shared = self._keep(source, coding)
        shared.root = None
        shared.whole = output
        self._grow(shared, len(output))
        return output

    def follow(self, source: Source, coding: bytes) -> Follower | None:
        """Begins to follow a response's encoding; None when there is no room for its encoder."""
        shared = self.find(source, coding)
        if shared is None or shared.root is None:
            encoder = self.encoders.make(coding)
            if encoder is None:
                return None
            shared = self._keep(source, coding)
            shared.encoder = encoder
        return Follower(self, shared)

    def _keep(self, source: Source, coding: bytes) -> SharedEncoding:
        serial = next(self._serials)
        shared = SharedEncoding(coding, ref(source, partial(self._on_source_gone, serial)), serial)
        if source.encodings is None:
            source.encodings = {}
        before = source.encodings.get(coding)
        if before is not None:
            self.drop(before)
        source.encodings[coding] = shared
        self._kept[serial] = shared
        self.size_bytes += shared.size_bytes
        return shared

    def _grow(self, shared: SharedEncoding, size_bytes: int) -> None:
        if not shared.is_kept:
            return
        shared.size_bytes += size_bytes
        self.size_bytes += size_bytes
        if shared.size_bytes > self._max_one_bytes:
            self.drop(shared)
        while self.size_bytes > self.max_bytes:
            self.drop(next(iter(self._kept.values())))

    def _on_source_gone(self, serial: int, _source: object) -> None:
        shared = self._kept.get(serial)
        if shared is not None:
            self.drop(shared)

    def drop(self, shared: SharedEncoding) -> None:
        """Keeps an encoding no longer; who follows it still does."""
        if not shared.is_kept:
            return
        shared.is_kept = False
        shared.root = None
        del self._kept[shared.serial]
        self.size_bytes -= shared.size_bytes
        source = shared.source()
        encodings = None if source is None else source.encodings
        if encodings is not None and encodings.get(shared.coding) is shared:
            del encodings[shared.coding]

    def add(self, shared: SharedEncoding, after: _Step, until: int, data: bytes, end: bool) -> _Step:
        """Encodes what nobody had before."""
        encoder = shared.encoder
        assert encoder is not None
        step = _Step(until, encoder.finish(data) if end else encoder.encode(data), end)
        after.next = step
        if end:
            self._release(shared)
        self._grow(shared, len(step.output) + _OVERHEAD_BYTES)
        return step

    def left(self, shared: SharedEncoding) -> None:
        """A follower is done. An encoding that nobody drives any more is of no use to those who come later."""
        shared.followers -= 1
        if not shared.followers and shared.encoder is not None:
            self._release(shared)
            self.drop(shared)

    def _release(self, shared: SharedEncoding) -> None:
        shared.encoder = None
        self.encoders.release(shared.coding)


class Follower:
    """One visitor's way along a shared encoding."""

    __slots__ = ("_encodings", "_held", "_held_bytes", "_received", "_shared", "_step")

    def __init__(self, encodings: SharedEncodings, shared: SharedEncoding) -> None:
        assert shared.root is not None
        self._encodings = encodings
        self._shared = shared
        self._step = shared.root
        self._received = 0
        self._held: list[bytes] = []
        """Input behind the last step: less than the next one takes, which is one read."""
        self._held_bytes = 0
        shared.followers += 1

    def encode(self, data: bytes) -> bytes:
        return self._advance(data, False)

    def finish(self, data: bytes) -> bytes:
        return self._advance(data, True)

    def _advance(self, data: bytes, end: bool) -> bytes:
        if data:
            self._received += len(data)
            self._held.append(data)
            self._held_bytes += len(data)
        step = self._step
        output = b""
        while (following := step.next) is not None:
            if following.until > self._received or (following.is_last and not end):
                break  # others are further; the rest of this step's input comes as well
            output = output + following.output if output else following.output
            step = following
        self._step = step
        self._forget(self._received - step.until)
        if following is None and not step.is_last and (self._held or end):
            rest = b"".join(self._held)
            self._forget(0)
            self._step = step = self._encodings.add(self._shared, step, self._received, rest, end)
            output = output + step.output if output else step.output
        return output

    def _forget(self, keep_bytes: int) -> None:
        """Keeps the last `keep_bytes` of what is held."""
        held = self._held
        while held and self._held_bytes - len(held[0]) >= keep_bytes:
            self._held_bytes -= len(held.pop(0))
        if self._held_bytes > keep_bytes:
            held[0] = held[0][self._held_bytes - keep_bytes :]
            self._held_bytes = keep_bytes

    def close(self) -> None:
        """The visitor has everything, or is gone."""
        self._encodings.left(self._shared)
