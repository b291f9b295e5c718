"""The store of a server without a cluster: a state folder, watched by looking at it twice a second.

Looking is a stat per file on a thread; files are read again only when a mark changed. So `edgetun token revoke` in another
process, an editor and a configuration tool all take effect within a second, with no protocol between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from edgetun_control.store import ENDED_TOKEN_KEPT_S, Claim, StoreProblem, StoreState
from edgetun_control.stores.state_folder import FileMark, KnownTokens, StateFolder
from edgetun_core.credentials import TokenRecord
from edgetun_core.errors import ConfigError, EdgetunError

log = logging.getLogger("edgetun.control.store")

LOOK_EVERY_S: Final = 0.5
HOUSEKEEPING_EVERY_S: Final = 60.0
"""Key rotation, last-used times, tombstones."""


class FolderStore:
    """A `Store` over a `StateFolder`. `start` before anything else, `close` in the end."""

    def __init__(
        self,
        path: str | Path,
        *,
        clock: Callable[[], float] = time.time,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self.folder = StateFolder(path)
        self._clock = clock
        self._look_every_s = look_every_s
        self._state = StoreState()
        self._marks: tuple[tuple[FileMark, ...], ...] = ()
        self._known = KnownTokens()
        self._is_known_unwritten = False
        self._used: dict[str, float] = {}
        self._is_used_unwritten = False
        self._watchers: list[Callable[[], None]] = []
        self._reading = asyncio.Lock()
        self._serving = contextlib.ExitStack()
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> StoreState:
        return self._state

    def watch(self, changed: Callable[[], None]) -> Callable[[], None]:
        self._watchers.append(changed)

        def stop() -> None:
            if changed in self._watchers:
                self._watchers.remove(changed)

        return stop

    async def start(self) -> None:
        """Sets the folder up where it is missing, reads it, and begins to watch. Raises `ConfigError`."""
        await asyncio.to_thread(self._open)
        await self.refresh()
        self._task = asyncio.create_task(self._look_again(), name="state folder")

    async def close(self) -> None:
        """Ends watching, writes what is unwritten, and lets another server have the folder. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            with contextlib.suppress(ConfigError):
                await asyncio.to_thread(self._write_used)
        self._serving.close()

    async def claim(self, claim: Claim, most_per_token: int) -> Claim:
        standing = await asyncio.to_thread(self.folder.claim, claim, most_per_token)
        if self._state.claims.get(claim.hostname) != standing:
            await self.refresh()
        return standing

    def note_used(self, token_id: str, now: float) -> None:
        self._used[token_id] = now
        self._is_used_unwritten = True

    async def refresh(self) -> None:
        """Reads the folder now if anything in it may have changed, and tells the watchers if anything has."""
        async with self._reading:
            read = await asyncio.to_thread(self._read_if_changed)
        if read is None or read == self._state:
            return
        for problem in read.problems:
            if problem not in self._state.problems:
                log.warning("state folder: %s %s", problem.source, problem.message)
        self._state = read
        for changed in tuple(self._watchers):
            changed()

    async def _look_again(self) -> None:
        housekeeping_at = self._clock() + HOUSEKEEPING_EVERY_S
        said = ""
        while True:
            await asyncio.sleep(self._look_every_s)
            try:
                await self.refresh()
                now = self._clock()
                if now >= housekeeping_at or now < housekeeping_at - 2 * HOUSEKEEPING_EVERY_S:
                    housekeeping_at = now + HOUSEKEEPING_EVERY_S
                    await asyncio.to_thread(self._housekeep)
                said = ""
            except EdgetunError as error:
                # A full disk or a vanished mount: serve on from what was last read, and say so once.
                if str(error) != said:
                    said = str(error)
                    log.error("%s; serving on from what was last read", said)  # no traceback for people

    # ---- on a thread, one at a time

    def _open(self) -> None:
        self.folder.create()
        self._serving.enter_context(self.folder.serving())
        try:
            self._known = self.folder.read_known_tokens()
            self._used = self.folder.read_used_tokens()
            self.folder.rotate_signing_keys(self._clock())
        except BaseException:
            self._serving.close()
            raise

    def _read_if_changed(self) -> StoreState | None:
        marks = self.folder.marks()
        if marks == self._marks:
            return None
        problems: list[StoreProblem] = []
        tokens = self._keep_unreadable(self.folder.read_tokens(problems), marks[0])
        state = StoreState(
            tokens=tokens,
            ended_tokens=self._notice_deleted(tokens),
            manifests=self.folder.load_manifests(),
            claims=self.folder.read_claims(problems),
            signing_keys=self.folder.read_signing_keys(problems),
            problems=tuple(problems),
        )
        # Taken before reading: what changed meanwhile is found the next time.
        self._marks = marks
        return state

    def _keep_unreadable(self, read: dict[str, TokenRecord], marks: tuple[FileMark, ...]) -> dict[str, TokenRecord]:
        """A token whose file is there but not readable now keeps what it was: an editor's half-saved file ends no session."""
        there = {mark[0].removesuffix(".json") for mark in marks}
        kept = {id_: record for id_, record in self._state.tokens.items() if id_ in there and id_ not in read}
        return {**read, **kept}

    def _notice_deleted(self, tokens: Mapping[str, TokenRecord]) -> dict[str, float]:
        """The ids of deleted tokens; written down before they are told, so that a restart does not forget them."""
        now = self._clock()
        ended = {
            id_: since
            for id_, since in self._known.ended.items()
            if id_ not in tokens and now < since + ENDED_TOKEN_KEPT_S
        }
        for id_ in self._known.known:
            if id_ not in tokens:
                ended.setdefault(id_, now)
        known = KnownTokens(tuple(sorted(tokens)), ended)
        if known != self._known:
            self._known = known
            self._is_known_unwritten = True
        self._write_known()
        return ended

    def _write_known(self) -> None:
        if not self._is_known_unwritten:
            return
        try:
            self.folder.write_known_tokens(self._known)
        except ConfigError as error:
            # A full disk must not keep a revocation from the exit nodes; it is written when there is room again.
            log.warning("%s; a token deleted now would count again after a restart, for up to an hour", error)
        else:
            self._is_known_unwritten = False

    def _housekeep(self) -> None:
        self._write_known()
        self._write_used()
        if self.folder.rotate_signing_keys(self._clock()):
            log.info("made a new signing key for session credentials")

    def _write_used(self) -> None:
        if self._is_used_unwritten:
            self._is_used_unwritten = False
            self.folder.write_used_tokens({id_: when for id_, when in self._used.items() if id_ in self._state.tokens})
