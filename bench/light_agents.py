"""Many agents in one process, each with one session: the agents' own session code without an origin behind it.

python bench/light_agents.py FOLDER ENGINE PORT COUNT

Agent n serves `bench/tN` and answers every request with 1 KB that may be kept for an hour. FOLDER holds `ca.pem`; the file `up`
is written there when all sessions are open.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path

from baselines import ONE_KB

from edgetun_core.credentials import SigningKey
from edgetun_core.errors import EdgetunError
from edgetun_core.http.exchange import CLOSED, RequestSink, ResponseSink
from edgetun_core.http.message import Peer, RequestHead, ResponseHead
from edgetun_core.pki import Trust
from edgetun_core.process import raise_open_files_limit
from edgetun_core.transport.engines import dial
from edgetun_core.transport.runner import SessionRunner
from edgetun_core.wire.hello import Hello

BODY = ONE_KB.encode()
KEY = SigningKey("bench", bytes(32))
AT_ONCE = 16
"""Handshakes that are under way at one time."""

_HEAD = ResponseHead(
    200, ((b"content-length", str(len(BODY)).encode()), (b"cache-control", b"max-age=3600"), (b"content-type", b"text/plain"))
)  # fmt: skip


def service(number: int) -> str:
    """The tunnel of an agent."""
    return f"bench/t{number}"


class _Answers:
    """The handler at the end of every session."""

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        client.on_head(_HEAD, False)
        client.on_data(BODY, True)
        return CLOSED


class _Listener:
    """Hears whether all sessions are open, and that none is lost."""

    def __init__(self) -> None:
        self.opened = 0
        self.lost: list[str] = []
        self.news = asyncio.Event()

    def on_session_open(self, runner: SessionRunner) -> None:
        self.opened += 1
        self.news.set()

    def on_session_draining(self, runner: SessionRunner, deadline_s: float) -> None:
        pass

    def on_session_closed(self, runner: SessionRunner, error: EdgetunError | None) -> None:
        self.lost.append(str(error))
        self.news.set()


async def run(folder: Path, engine: str, port: int, count: int) -> None:
    raise_open_files_limit()
    trust = Trust((folder / "ca.pem").read_bytes())
    handler, listener = _Answers(), _Listener()
    places = asyncio.Semaphore(AT_ONCE)

    async def connect(number: int) -> None:
        agent, services = f"agent-{number}", (service(number),)
        credential = KEY.sign(agent_id=agent, token_id="bench", services=services, now=time.time())
        hello = Hello(agent_id=agent, session_id=f"{number:032x}", credential=credential, services=services)
        async with places:
            await dial(
                engine, "127.0.0.1", port, trust=trust, user=SessionRunner.dialling(hello, handler, listener), timeout_s=30
            )  # fmt: skip

    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await asyncio.gather(*(connect(number) for number in range(count)))
    while listener.opened < count and not listener.lost:
        listener.news.clear()
        await listener.news.wait()
    if listener.lost:
        sys.exit(f"a session was lost: {listener.lost[0]}")
    (folder / "up").touch()
    await stopped.wait()
    if listener.lost:
        sys.exit(f"{len(listener.lost)} sessions were lost: {listener.lost[0]}")


if __name__ == "__main__":
    import uvloop

    uvloop.run(run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
