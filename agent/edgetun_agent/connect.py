"""Keeps the agent connected: two sessions or more, each with its own slot that reconnects, moves away from what drains, and waits.

A slot keeps its session id over reconnects, so that the exit node knows whose place it takes. Only when the old session is
still alive (it drains, or QUIC takes over from TLS) does the new one get an id of its own.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable, Sequence
from time import monotonic

import msgspec

from edgetun_agent.backoff import Backoff, decide_drained_delay_s
from edgetun_agent.dialling import AgentSession, Attempt
from edgetun_agent.endpoints import Failures, decide_crowded, decide_endpoint
from edgetun_agent.lossy import LossMemory
from edgetun_agent.observe import AgentCounters, AgentListener, SessionView, SilentListener
from edgetun_agent.probe import goes_by, handshake_time_s
from edgetun_agent.race import Transport, Wanted, decide_better, decide_transports
from edgetun_agent.udp_memory import PathState, UdpMemory
from edgetun_core.enrollment import Endpoint
from edgetun_core.errors import AuthError, ConfigError, EdgetunError
from edgetun_core.http.exchange import Handler
from edgetun_core.pki import Trust
from edgetun_core.transport.quic_library import LOSSY_ENGINE
from edgetun_core.transport.way import Way
from edgetun_core.wire.hello import Hello
from edgetun_core.wire.keepalive import FEATURE as KEEP_ALIVE
from edgetun_core.wire.keepalive import KeepAlive

log = logging.getLogger(__name__)

LEAST_SESSIONS = 2
SKEW_WORTH_SAYING_S = 60.0
MOST_NOTICES = 100
LEAVE_WITHIN_S = 30.0
"""How long exchanges may go on over a session that a better one replaces."""
LEAVE_SLOW_PATH_WITHIN_S = 3600.0
"""The same when only the congestion control is another: what is under way has time to end."""
LOSES_PACKETS = "the path loses packets, which another congestion control bears better"
BETTER_THAN_WEBSOCKET_S = 60.0
"""How long a session in a WebSocket goes on before plain TLS is tried again, where nothing is known of UDP."""
PROBE_S = 3.0
"""What a probe of QUIC gets: a packet that was lost is sent again after one second, and after three."""
SILENT_S = 3.0
"""How long a stopping agent with nothing under way waits for an exit node that is gone without a word."""
LOOK_EVERY_S = 0.05
GOODBYE_S = 1.5
"""How long the last frames may take to leave when the agent stops."""

HelloFactory = Callable[[str], Hello]


class Agent:
    """The sessions of one agent. `start` it on the event loop, `drain` it to stop.

    `hello` makes the hello for a session id, with the credential of the moment; `handler` takes the visitors' requests.
    `on_refused` hears when an exit node does not accept the credential (renew it, then call `retry_now`).
    """

    def __init__(
        self,
        *,
        endpoints: Sequence[Endpoint],
        trust: Trust,
        hello: HelloFactory,
        handler: Handler,
        listener: AgentListener | None = None,
        on_refused: Callable[[EdgetunError], None] = lambda _: None,
        transport: Wanted = "auto",
        quic_engine: str = "qh3",
        sessions: int = LEAST_SESSIONS,
        way: Way | None = None,
        websocket: Way | None = None,
        rng: random.Random | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        if not endpoints:
            raise ConfigError("there is no exit node to connect to", remedy="ask who runs the server")
        self.endpoints: tuple[Endpoint, ...] = tuple(endpoints)
        self.trust = trust
        self.hello = hello
        self.handler = handler
        self.listener: AgentListener = listener or SilentListener()
        self.on_refused = on_refused
        self.transport: Wanted = transport
        self.quic_engine = quic_engine
        self.way = way
        self.websocket = websocket
        self.counters = AgentCounters()
        self.last_error: EdgetunError | None = None
        self._rng = rng if rng is not None else random.Random()  # noqa: S311 - jitter, not a secret
        self._wall_clock = wall_clock
        self._slots = [_Slot(self, number) for number in range(max(1, sessions))]
        self._tasks: list[asyncio.Task[None]] = []
        self._sessions: list[AgentSession] = []
        self._failures = Failures()
        self._look_again: asyncio.TimerHandle | None = None
        self._udp: dict[Endpoint, UdpMemory] = {}
        self._losses: dict[Endpoint, LossMemory] = {}
        self._keep_alives: dict[tuple[Endpoint, str], KeepAlive] = {}
        self._bindings_lost = 0
        self._changed = asyncio.Event()
        self._trouble = ""
        self._notices: set[str] = set()
        self._is_skew_said = False
        self._is_stopping = False
        self._generation = 0
        self._instance = secrets.token_hex(8)
        self._reopened_for = ""

    # ---- for its owner

    def start(self) -> None:
        """Begins to connect; returns at once."""
        for slot in self._slots:
            self._tasks.append(asyncio.get_running_loop().create_task(slot.run(), name=f"session slot {slot.number}"))

    async def connected(self, timeout_s: float) -> None:
        """Returns when the first session is open; raises the last error, or `TimeoutError`, when none is in time.

        A refused credential is raised at once: waiting does not mend it.
        """
        async with asyncio.timeout(timeout_s):
            while not self.is_connected:
                if isinstance(self.last_error, AuthError):
                    raise self.last_error
                self._changed.clear()
                await self._changed.wait()

    def update(self, endpoints: Sequence[Endpoint], trust: Trust) -> None:
        """Takes what a renewed enrollment says. A session beside another at one exit node goes to one that is new."""
        if endpoints:
            self._failures.offered(self.endpoints, endpoints)
            self.endpoints = tuple(endpoints)
        self.trust = trust
        self.spread()

    def retry_now(self) -> None:
        """Ends every slot's wait, as when the credential was renewed or the network came back."""
        self.last_error = None
        for slot in self._slots:
            slot.hurry.set()

    def reopen(self, reason: str) -> None:
        """Replaces every session by a new one, whose hello says what holds now; each old one ends when its exchanges have."""
        self._reopened_for = reason
        self._generation += 1
        for session in self._sessions:
            session.leave(reason)

    async def drain(self, deadline_s: float) -> None:
        """Takes no new requests, lets those under way end within `deadline_s`, and closes."""
        self._is_stopping = True
        await self._stop_slots()
        leaving = [session for session in self._sessions if not session.is_over]
        for session in leaving:
            self._leave(session, deadline_s, "the agent is stopping")
        end = monotonic() + deadline_s
        quiet_since = monotonic()
        while any(not session.is_over for session in leaving) and (now := monotonic()) < end:
            if any(session.runner is not None and session.runner.in_flight for session in leaving):
                quiet_since = now
            elif now - quiet_since > SILENT_S:
                log.debug("an exit node does not answer the goodbye; nothing is under way, so it is not waited for")
                break
            await asyncio.sleep(min(LOOK_EVERY_S, end - now))
        if under_way := sum(view.in_flight for view in self.sessions):
            log.warning("%d requests did not end within %g s", under_way, deadline_s)
        await self._close(leaving)

    async def close(self) -> None:
        """Ends every session now."""
        self._is_stopping = True
        await self._stop_slots()
        await self._close(list(self._sessions))

    @staticmethod
    async def _close(leaving: list[AgentSession]) -> None:
        for session in leaving:
            if session.runner is not None:
                session.runner.close(None)
        try:
            async with asyncio.timeout(GOODBYE_S):
                for session in leaving:
                    await session.link_gone.wait()
        except TimeoutError:
            pass

    async def _stop_slots(self) -> None:
        if self._look_again is not None:
            self._look_again.cancel()
            self._look_again = None
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()

    @property
    def is_connected(self) -> bool:
        """Whether a session takes requests."""
        return any(_is_serving(session) for session in self._sessions)

    @property
    def sessions(self) -> list[SessionView]:
        """The sessions as people see them, oldest first."""
        return [self._view(session) for session in self._sessions if session.opened_at and not session.is_over]

    @property
    def bindings_lost(self) -> int:
        """How often a NAT on the way forgot a silent path."""
        return self._bindings_lost + sum(one.lost_total for one in self._keep_alives.values())

    # ---- for slots

    def chance(self) -> float:
        """A number in [0, 1) for jitter."""
        return self._rng.random()

    def choose_endpoint(self, slot: _Slot) -> Endpoint:
        """Where a slot connects next."""
        used = [other.endpoint for other in self._slots if other is not slot and other.endpoint is not None]
        failures, leaving = self._failures.counts(monotonic()), self._leaving()
        return decide_endpoint(self.endpoints, used, failures, leaving, wants_spare=self._wants_spare(slot))

    def is_offered(self, endpoint: Endpoint) -> bool:
        """Whether an endpoint that was chosen a moment ago is still one to connect to."""
        return endpoint in self.endpoints and endpoint not in self._leaving()

    def _wants_spare(self, slot: _Slot) -> bool:
        """The last of several sessions goes to the spare region, where control gave one."""
        return slot.number > 0 and slot is self._slots[-1] and any(endpoint.spare for endpoint in self.endpoints)

    def _is_misplaced(self, slot: _Slot) -> bool:
        """Whether a slot's session is in the spare region, or not there, since what it wants did not work; and now it does."""
        if slot.session is None or slot.endpoint is None or not _is_serving(slot.session):
            return False
        wanted = self._wants_spare(slot)
        return slot.endpoint.spare != wanted and self.choose_endpoint(slot).spare == wanted

    def spread(self) -> None:
        """Moves one session that stands beside another at one exit node to one that has none and works.

        Looked at whenever endpoints or sessions are others, and when a failure is long enough ago: no single look can be missed.
        """
        if self._look_again is not None:
            self._look_again.cancel()
            self._look_again = None
        if self._is_stopping:
            return
        # Of the sessions only those that slots hold: one that is being replaced already would leave for nothing.
        held = [slot.session for slot in self._slots if slot.session is not None]
        if any(session.leaving_for for session in held):
            return  # where that one goes is looked at when it is there
        now = monotonic()
        for slot in self._slots:
            if self._is_misplaced(slot) and slot.session is not None:
                slot.session.leave("its region can be reached again")
                return
        # The spare region has its one session, and is no place for the others.
        places = [endpoint for endpoint in self.endpoints if not endpoint.spare]
        used = [slot.endpoint for slot in self._slots if slot.endpoint is not None and not slot.endpoint.spare]
        crowded = decide_crowded(places, used, self._failures.counts(now), self._leaving())
        for session in sorted(held, key=lambda one: one.opened_at, reverse=True):
            if session.endpoint == crowded and _is_serving(session):
                session.leave("there is another exit node")
                return
        at = self._failures.next_change(now)
        if at is not None and self._tasks:
            self._look_again = asyncio.get_running_loop().call_later(at - now + 0.01, self.spread)

    def _leaving(self) -> set[Endpoint]:
        # Behind an address without a node's name there are others: the region's Service leads to one that stays.
        return {
            session.endpoint
            for session in self._sessions
            if session.endpoint.node and session.is_draining and not session.is_over
        }

    def udp(self, endpoint: Endpoint) -> UdpMemory:
        """What is known of UDP to an endpoint."""
        if len(self._udp) > 2 * len(self.endpoints):
            self._udp = {kept: memory for kept, memory in self._udp.items() if kept in self.endpoints}
        return self._udp.setdefault(endpoint, UdpMemory())

    def losses(self, endpoint: Endpoint) -> LossMemory:
        """What is known of the path to an endpoint."""
        if len(self._losses) > 2 * len(self.endpoints):
            self._losses = {kept: memory for kept, memory in self._losses.items() if kept in self.endpoints}
        return self._losses.setdefault(endpoint, LossMemory())

    def path_measured(self, session: AgentSession) -> None:
        """A session found out what its path does to packets: it is opened anew where the other congestion control is better."""
        if self._is_stopping or session.is_draining or session.leaving_for:
            return
        memory, now = self.losses(session.endpoint), monotonic()
        runs_for_loss = session.runner is not None and session.runner.engine == LOSSY_ENGINE
        if session.is_lossy and not runs_for_loss:
            memory.found_lossy(now)
            # The others have the same path; one with little to send would be long in finding out.
            for other in self._sessions:
                if other.endpoint == session.endpoint and _may_bear_loss_better(other):
                    other.leave(LOSES_PACKETS)
        elif not session.is_lossy and runs_for_loss and self.quic_engine != LOSSY_ENGINE and not memory.is_lossy(now):
            session.leave("the path is clean again")

    def keep_alive(self, endpoint: Endpoint, session_id: str) -> KeepAlive:
        """What is known of how long the path of one session may be silent; kept when the session is opened anew."""
        if len(self._keep_alives) > 4 * len(self._slots):
            self._bindings_lost += self._keep_alives.pop(next(iter(self._keep_alives))).lost_total
        return self._keep_alives.setdefault((endpoint, session_id), KeepAlive())

    def has_quic(self, endpoint: Endpoint) -> bool:
        """Whether QUIC may reach the endpoint: no proxy carries it, unless somebody wants nothing else."""
        return endpoint.quic_port > 0 and (self.transport == "quic" or not goes_by(self.way, endpoint))

    async def has_shown_health(self, endpoint: Endpoint) -> bool:
        """Probes QUIC to an endpoint where it is in doubt; True when it has been well for long enough."""
        udp = self.udp(endpoint)
        udp.claim(monotonic())
        answered = await handshake_time_s(endpoint, self.trust, self.quic_engine, PROBE_S) > 0
        self.counters.probes[answered] += 1
        is_well = udp.probed(answered, monotonic(), self.chance())
        self.sessions_changed()
        return is_well

    def path_of(self, session: AgentSession) -> tuple[PathState, float | None]:
        """How a session's transport stands to the best one, and in how many seconds that changes at the earliest."""
        udp = self.udp(session.endpoint)
        is_fallback = self.transport == "auto" and session.transport != "quic" and self.has_quic(session.endpoint)
        if not is_fallback:
            return "preferred", None
        now = monotonic()
        return udp.state, max(0.0, (udp.healthy_at(now) or udp.probe_at) - now)

    def attempt(self, endpoint: Endpoint, session_id: str, transports: tuple[Transport, ...] = ()) -> Attempt:
        """Prepares one race, of those that are wanted unless `transports` says which.

        Raises `ConfigError` when the endpoint offers none of them.
        """
        transports = transports or decide_transports(
            self.transport,
            self.has_quic(endpoint),
            endpoint.tls_port > 0,
            self.udp(endpoint),
            monotonic(),
            has_websocket=endpoint.tls_port > 0 and self.websocket is not None,
        )
        if not transports:
            raise ConfigError(
                f"exit node {endpoint.host} does not offer transport {self.transport}",
                remedy="choose --transport auto",
            )
        return Attempt(
            endpoint,
            transports,
            msgspec.structs.replace(self.hello(session_id), instance=self._instance, features=(KEEP_ALIVE,)),
            self.handler,
            self.trust,
            self.quic_engine,
            self.sessions_changed,
            self._generation,
            self.way,
            self.websocket,
            is_lossy=self.losses(endpoint).is_lossy(monotonic()),
            tell_path=self.path_measured,
            keep_alive=self.keep_alive(endpoint, session_id),
        )

    def opened(self, attempt: Attempt) -> None:
        """A session is up."""
        session = attempt.session
        self._sessions.append(session)
        self._failures.opened(session.endpoint)
        self.counters.sessions_opened += 1
        self.last_error = None
        if attempt.won is not None and attempt.won.beat_quic:
            self.counters.fallbacks += 1
            self.udp(session.endpoint).lost_to_tls(monotonic(), self.chance())
            log.info(
                "QUIC did not open to %s, so this session is on %s",
                session.endpoint.host,
                "TLS" if session.transport == "tls" else "TLS in a WebSocket",
            )
        elif attempt.won is not None and attempt.won.transport == "quic":
            self.udp(session.endpoint).opened()
        if self._trouble:
            self._trouble = ""
            log.info("connected again")
        view = self._view(session)
        log.info("connected to %s over %s", view.node, view.transport)
        self._look_at_clock(session)
        if attempt.generation != self._generation:
            session.leave(self._reopened_for)  # its hello was written before that
        assert session.runner is not None
        welcome = session.runner.welcome
        for service, reason in welcome.refused if welcome is not None else ():
            self._notice(f'{view.node} does not let this agent serve "{service}": {reason}')
        self.sessions_changed()

    def failed(self, endpoint: Endpoint, error: EdgetunError) -> None:
        """An attempt came to nothing."""
        if endpoint in self.endpoints:
            self._failures.failed(endpoint, monotonic())
        self.counters.connect_failures += 1
        self.last_error = error
        if not self.is_connected:
            self.say_trouble(f"not connected: {error}")
        else:
            log.debug("another session to %s could not be opened: %s", endpoint.host, error)
        self._changed.set()

    def drained(self, endpoint: Endpoint) -> None:
        """An exit node sent a session away: it is worth another try when it is offered anew, or after a while."""
        if endpoint.node and endpoint in self.endpoints:
            self._failures.failed(endpoint, monotonic())

    def lost(self, session: AgentSession) -> None:
        """A session that was up ended without having been told to."""
        self.counters.reconnects += 1
        why = session.error or "it closed"
        log.info("lost the session to %s (%s), connecting again", session.endpoint.host, why)

    def leave_when_done(self, session: AgentSession, deadline_s: float, reason: str) -> None:
        """Another session has taken over: this one ends when its exchanges have."""
        if not session.is_over and not session.is_draining:
            self._leave(session, deadline_s, reason)

    @staticmethod
    def _leave(session: AgentSession, deadline_s: float, reason: str) -> None:
        if session.runner is not None:
            session.runner.drain(deadline_s, reason)

    def sessions_changed(self) -> None:
        """Tells whoever looks."""
        self._sessions = [session for session in self._sessions if not session.is_over]
        self._changed.set()
        self.listener.on_sessions_changed(self.sessions)
        self.spread()

    def say_trouble(self, message: str) -> None:
        """Says something once, until it changes or all is well again."""
        if message != self._trouble and not self._is_stopping:
            self._trouble = message
            log.warning("%s", message)
            self.listener.on_trouble(message)

    def _notice(self, message: str) -> None:
        """Says something that has nothing to do with being connected once for good."""
        if message not in self._notices and len(self._notices) < MOST_NOTICES:
            self._notices.add(message)
            log.warning("%s", message)
            self.listener.on_trouble(message)

    def _view(self, session: AgentSession) -> SessionView:
        runner = session.runner
        assert runner is not None
        welcome = runner.welcome
        path, changes_in_s = self.path_of(session)
        return SessionView(
            node=(welcome.node if welcome is not None else "") or session.endpoint.host,
            endpoint=session.endpoint.host,
            transport=session.transport,
            rtt_s=runner.rtt_s,
            in_flight=runner.in_flight,
            is_draining=session.is_draining,
            since=session.opened_at,
            keep_alive_s=runner.ping_interval_s,
            udp_buffer_bytes=getattr(runner.link, "udp_buffer_bytes", 0),
            path=path,
            changes_in_s=changes_in_s,
        )

    def _look_at_clock(self, session: AgentSession) -> None:
        assert session.runner is not None
        welcome = session.runner.welcome
        if welcome is None or not welcome.server_time:
            return
        skew_s = self._wall_clock() - welcome.server_time
        if abs(skew_s) > SKEW_WORTH_SAYING_S and not self._is_skew_said:
            self._is_skew_said = True
            ahead = "ahead of" if skew_s > 0 else "behind"
            self._notice(
                f"this machine's clock is {abs(skew_s):.0f} s {ahead} that of {welcome.node or session.endpoint.host}; "
                "set it, or credentials and certificates will be refused"
            )


class _Slot:
    """One place for a session: connects, holds, connects again, for as long as it runs."""

    def __init__(self, agent: Agent, number: int) -> None:
        self._agent = agent
        self.number = number
        self.session_id = secrets.token_hex(16)
        self.endpoint: Endpoint | None = None
        self.session: AgentSession | None = None
        """What it holds; none while it connects."""
        self.hurry = asyncio.Event()
        self._chosen: Endpoint | None = None
        """Where the next session goes, when that is settled already."""
        self._backoff = Backoff()

    async def run(self) -> None:
        """Runs until it is cancelled."""
        previous: AgentSession | None = None
        while True:
            session = await self._connect()
            if previous is not None:
                within_s = LEAVE_SLOW_PATH_WITHIN_S if previous.leaving_for == LOSES_PACKETS else LEAVE_WITHIN_S
                self._agent.leave_when_done(previous, within_s, "another session has taken over")
            self.session = session
            self._agent.spread()
            previous = await self._hold(session)
            self.session = None

    async def _connect(self) -> AgentSession:
        """A session, however long it takes."""
        agent = self._agent
        while True:
            chosen, self._chosen = self._chosen, None
            if chosen is None or not agent.is_offered(chosen):
                chosen = agent.choose_endpoint(self)
            endpoint = self.endpoint = chosen
            attempt: Attempt | None = None
            try:
                attempt = agent.attempt(endpoint, self.session_id)
                session = await attempt.run()
            except EdgetunError as error:
                agent.failed(endpoint, error)
                await self._pause(self._delay_after(attempt, error))
                continue
            self._backoff.opened(monotonic())
            agent.opened(attempt)
            return session

    def _delay_after(self, attempt: Attempt | None, error: EdgetunError) -> float:
        runner = None if attempt is None else attempt.session.runner
        refusal = None if runner is None else runner.refusal
        if refusal is None:
            if attempt is not None and attempt.nobody_listens and self.number == 0 and not self._agent.is_connected:
                # Only one slot of an agent without any session looks so often: they are many who wait for this exit node.
                return self._backoff.nobody_listens(monotonic(), self._agent.chance())
            return self._backoff.failed(self._agent.chance())
        if isinstance(error, AuthError):
            self._agent.on_refused(error)
        return self._backoff.refused(refusal.retry_after_s, self._agent.chance())

    async def _hold(self, session: AgentSession) -> AgentSession | None:
        """Returns when it is time for another session: with the old one when that is still alive, after a wait when not."""
        agent = self._agent
        better = await self._until_over_or_better(session)
        if better is not None:
            agent.leave_when_done(session, LEAVE_WITHIN_S, f"{better.transport} works again")
            agent.counters.returns += better.transport == "quic"
            self.session = better
            agent.spread()
            return await self._hold(better)
        if not session.is_over:
            if session.leaving_for:
                log.info("opening the session to %s anew: %s", session.endpoint.host, session.leaving_for)
            else:
                log.info("%s is going away, connecting elsewhere", session.endpoint.host)
                await self._drained(session)
            self.session_id = secrets.token_hex(16)
            return session
        if session.is_draining:
            await self._drained(session)
            return None
        agent.lost(session)
        error = session.error
        if isinstance(error, AuthError):
            agent.say_trouble(f"an exit node closed the session: {error}")
            agent.on_refused(error)
            delay_s = self._backoff.refused(-1.0, agent.chance())
        else:
            delay_s = self._backoff.lost(monotonic(), agent.chance())
        await self._pause(delay_s)
        return None

    async def _drained(self, session: AgentSession) -> None:
        """All agents of an exit node hear at once that it drains. Who has another session takes its time, so that they spread out."""
        agent = self._agent
        agent.drained(session.endpoint)
        if agent.is_connected:
            # Chosen now: what the exit node said of itself is forgotten with its session, which may end before the wait does.
            self._chosen = self.endpoint = agent.choose_endpoint(self)
            await self._pause(decide_drained_delay_s(session.drains_within_s, agent.chance()))

    async def _until_over_or_better(self, session: AgentSession) -> AgentSession | None:
        """Waits for the session's end or drain; while it is not on QUIC, looks now and then whether something better works by now."""
        agent = self._agent
        while True:
            better: tuple[Transport, ...] = ()
            if agent.transport == "auto":
                endpoint = session.endpoint
                better = decide_better(session.transport, agent.has_quic(endpoint), endpoint.tls_port > 0)
            wait_s = None
            if "quic" in better:
                # Not in doubt: another session of the agent has gone back already.
                wait_s = max(0.1, agent.udp(session.endpoint).probe_at - monotonic())
            if "tls" in better:
                wait_s = BETTER_THAN_WEBSOCKET_S if wait_s is None else min(wait_s, BETTER_THAN_WEBSOCKET_S)
            try:
                async with asyncio.timeout(wait_s):
                    await session.until(lambda: session.is_over or session.is_draining or bool(session.leaving_for))
                return None
            except TimeoutError:
                pass
            if "quic" in better and not await self._is_quic_well(session.endpoint):
                better = tuple(one for one in better if one != "quic")
                if not better:
                    continue
            found = await self._try(session.endpoint, better)
            if found is not None and not session.is_over:
                return found
            if found is not None:
                agent.leave_when_done(found, 0.0, "not needed")

    async def _is_quic_well(self, endpoint: Endpoint) -> bool:
        udp = self._agent.udp(endpoint)
        if not udp.is_in_doubt:
            return True
        return monotonic() >= udp.probe_at and await self._agent.has_shown_health(endpoint)

    async def _try(self, endpoint: Endpoint, transports: tuple[Transport, ...]) -> AgentSession | None:
        agent = self._agent
        session_id = secrets.token_hex(16)
        try:
            attempt = agent.attempt(endpoint, session_id, transports)
            session = await attempt.run()
        except EdgetunError as error:
            log.debug("%s still does not open to %s: %s", " or ".join(transports), endpoint.host, error)
            if "quic" in transports:
                agent.udp(endpoint).lost_to_tls(monotonic(), agent.chance())
            return None
        self.session_id = session_id
        agent.opened(attempt)
        return session

    async def _pause(self, delay_s: float) -> None:
        self.hurry.clear()
        try:
            async with asyncio.timeout(delay_s):
                await self.hurry.wait()
        except TimeoutError:
            pass


def _may_bear_loss_better(session: AgentSession) -> bool:
    """Whether a session is by QUIC, without the congestion control that bears loss, and is to stay."""
    runner = session.runner
    if session.transport != "quic" or runner is None or runner.engine == LOSSY_ENGINE:
        return False
    return _is_serving(session) and not session.leaving_for


def _is_serving(session: AgentSession) -> bool:
    return session.opened_at > 0 and not session.is_over and not session.is_draining
