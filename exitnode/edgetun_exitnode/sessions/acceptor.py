"""Lets agents in: checks the credential of a hello against the snapshot, and keeps the registry true.

A credential is verified offline, with the snapshot's keys. A token that a later snapshot revokes loses exactly its own
sessions. A hello with the session id of a session that stands replaces it: the agent is the one who knows.

An agent that was started anew (another `instance` in its hello) takes its tunnels over at once: its older sessions get no new
exchange and are asked whether anybody is there. One that was cut off without a word is over `CHECK_LEAST_S` later; one that
answers (the old process of a rolling update, a second agent under the same name) goes on as before, and nothing of it is cut.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from edgetun_core import __version__
from edgetun_core.credentials import CredentialExpired, CredentialKeyUnknown, CredentialRevoked, CredentialVerifier
from edgetun_core.errors import AuthError, Draining, EdgetunError, LimitExceeded, NotFound
from edgetun_core.http.exchange import CLOSED, RequestSink, ResponseSink
from edgetun_core.http.message import Peer, RequestHead
from edgetun_core.snapshot import Snapshot
from edgetun_core.transport.link import Link, LinkUser
from edgetun_core.transport.runner import SessionRunner
from edgetun_core.wire.datagrams import DatagramCounters
from edgetun_core.wire.hello import Hello, Refusal, Welcome
from edgetun_core.wire.keepalive import FEATURE as KEEP_ALIVE
from edgetun_core.wire.states import State
from edgetun_exitnode.sessions.registry import SessionRegistry

log = logging.getLogger(__name__)

MAX_SESSIONS = 10_000
CHECK_LEAST_S = 0.9
"""What an older session gets to answer when its agent was started anew; QUIC sends a lost packet again well within it."""
CHECK_MOST_S = 3.0


class _NoExchanges:
    """Agents open no exchanges on an exit node; one that tries is told so."""

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        client.on_reset(NotFound("this exit node takes no requests from agents"))
        return CLOSED


class _Admitted:
    """What is remembered of a session while it stands."""

    __slots__ = ("is_checked", "services", "since", "token_id")

    def __init__(self, token_id: str, services: tuple[str, ...], since: float) -> None:
        self.token_id = token_id
        self.services = services
        self.since = since
        self.is_checked = False
        """It was asked whether it lives, and has not answered."""


class AdmittedSession(NamedTuple):
    """A session that stands. `since`: seconds since the epoch."""

    runner: SessionRunner
    token_id: str
    services: tuple[str, ...]
    since: float


class SessionAcceptor:
    """One per exit node; `accept` is what listeners call for each link."""

    def __init__(
        self,
        registry: SessionRegistry,
        node: str,
        wall_clock: Callable[[], float],
        *,
        max_sessions: int = MAX_SESSIONS,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._registry = registry
        self._node = node
        self._wall_clock = wall_clock
        self._max_sessions = max_sessions
        self.on_change = on_change
        """Called after a session was opened, drains, or is gone."""
        self._verifier = CredentialVerifier()
        self._has_snapshot = False
        self._pending: dict[str, _Admitted] = {}
        self._admitted: dict[SessionRunner, _Admitted] = {}
        self._by_session_id: dict[str, SessionRunner] = {}
        self._by_agent: dict[str, tuple[SessionRunner, ...]] = {}
        self._cut_off_since: float | None = None
        self.is_draining = False
        self._datagrams_before = DatagramCounters()
        """Of sessions that are over."""
        self.opened_total = 0
        self.refused_total = 0
        self.revoked_total = 0
        self.checked_total = 0
        """Sessions that were asked whether they live, since their agent was started anew."""
        self.taken_over_total = 0
        """Those of them that did not answer, and those that their own agent opened anew."""

    def lost_control(self, since: float | None = None) -> None:
        """Control cannot be reached, from now or `since` (seconds since the epoch) on: nobody can renew a credential."""
        if self._cut_off_since is None:
            self._cut_off_since = self._wall_clock() if since is None else since

    def found_control(self) -> None:
        """Control is there: credentials end when they end."""
        self._cut_off_since = None

    def accept(self) -> LinkUser:
        """The user of a new link."""
        return SessionRunner.accepting(self.decide, _NoExchanges(), self)

    def apply(self, snapshot: Snapshot) -> None:
        """Takes a snapshot's keys and revocations; closes the sessions that no longer may be."""
        self._verifier.update(snapshot)
        self._has_snapshot = True
        if not snapshot.revoked_tokens:
            return
        revoked = set(snapshot.revoked_tokens)
        for runner, admitted in list(self._admitted.items()):
            if admitted.token_id in revoked:
                self.revoked_total += 1
                self._registry.remove(runner)
                runner.close(CredentialRevoked("the cluster token was revoked", remedy="ask for a new token"))

    def decide(self, hello: Hello, link: Link) -> Welcome | Refusal:
        """Whether a hello is welcome, and for which tunnels."""
        if self.is_draining:
            return self._refuse(Draining("this exit node is going away; connect to another"), retry_after_s=1.0)
        if not self._has_snapshot:
            return self._refuse(Draining("this exit node has just started and has no snapshot yet"), retry_after_s=1.0)
        if len(self._admitted) >= self._max_sessions and hello.session_id not in self._by_session_id:
            return self._refuse(
                LimitExceeded(f"this exit node holds {self._max_sessions} sessions, as many as it may"), 30.0
            )
        try:
            claims = self._verifier.verify(hello.credential, self._wall_clock(), self._cut_off_since)
        except AuthError as error:
            log.warning("refused agent %s at %s: %s", hello.agent_id, link.peer_address[0], error)
            # What a renewal or the next snapshot mends is worth another try soon.
            return self._refuse(error, 0.0 if isinstance(error, CredentialExpired | CredentialKeyUnknown) else -1.0)
        if claims.agent_id != hello.agent_id:
            return self._refuse(
                AuthError("the credential was made for another agent", remedy="let the agent register again"), -1.0
            )
        accepted: list[str] = []
        refused: list[tuple[str, str]] = []
        for service in hello.services:
            if service not in claims.services:
                refused.append((service, "the credential does not cover this tunnel"))
            else:
                # A tunnel this node has not heard of yet may be in the next snapshot: its session is ready then.
                accepted.append(service)
        if not accepted:
            why = refused[0][1] if refused else "the hello names no tunnel"
            return self._refuse(AuthError(f"nothing to serve: {why}"), -1.0)
        self._pending[hello.session_id] = _Admitted(claims.token_id, tuple(accepted), self._wall_clock())
        return Welcome(
            node=self._node,
            services=tuple(accepted),
            refused=tuple(refused),
            server_time=self._wall_clock(),
            software=f"edgetun/{__version__}",
            features=(KEEP_ALIVE,),
        )

    def _refuse(self, error: EdgetunError, retry_after_s: float = 0.0) -> Refusal:
        self.refused_total += 1
        return Refusal(code=error.presentation.close_code, reason=str(error), retry_after_s=retry_after_s)

    # SessionListener

    def on_session_open(self, runner: SessionRunner) -> None:
        hello = runner.hello
        admitted = self._pending.pop(hello.session_id, None) if hello is not None else None
        if hello is None or admitted is None:
            runner.close(AuthError("the session was not admitted"))
            return
        self.opened_total += 1
        old = self._by_session_id.get(hello.session_id)
        self._by_session_id[hello.session_id] = runner
        self._admitted[runner] = admitted
        self._by_agent[hello.agent_id] = (*self._by_agent.get(hello.agent_id, ()), runner)
        self._serve(runner, hello, admitted)
        if old is not None and old in self._admitted:
            self._admitted[old].is_checked = True
            self._registry.remove(old)
            old.close(EdgetunError("the agent opened this session anew"))
        self._check_older(hello, admitted, is_replacing=old is not None)
        log.info("agent %s is connected over %s for %s", hello.agent_id, runner.transport, ", ".join(admitted.services))
        self.on_change()

    def _check_older(self, hello: Hello, admitted: _Admitted, *, is_replacing: bool) -> None:
        """The sessions of the agent's other processes: none gets an exchange before it shows that somebody is there.

        Where a session was opened anew the path was lost, and maybe that of the process's other sessions with it.
        """
        for runner in self._by_agent.get(hello.agent_id, ()):
            theirs = runner.hello
            of_it = self._admitted.get(runner)
            if theirs is None or of_it is None or of_it is admitted:
                continue
            if theirs.instance == hello.instance and not is_replacing:
                continue
            if of_it.token_id != admitted.token_id or runner.state not in (State.OPEN, State.DRAINING):
                continue  # another token's agent may have the same name: it is none of this one's business
            of_it.is_checked = True
            self.checked_total += 1
            self._registry.remove(runner)
            within_s = min(CHECK_MOST_S, max(CHECK_LEAST_S, 4 * (runner.rtt_s or 0.0)))
            runner.check(within_s, lambda runner=runner, of_it=of_it: self._is_there(runner, of_it))  # type: ignore[misc]

    def _is_there(self, runner: SessionRunner, admitted: _Admitted) -> None:
        admitted.is_checked = False
        if runner in self._admitted and runner.state is State.OPEN and runner.hello is not None:
            self._serve(runner, runner.hello, admitted)

    def _serve(self, runner: SessionRunner, hello: Hello, admitted: _Admitted) -> None:
        self._registry.add(runner, admitted.services, weight=hello.served_weight, is_standby=hello.standby)

    def on_session_draining(self, runner: SessionRunner, deadline_s: float) -> None:
        self._registry.remove(runner)
        self.on_change()

    def on_session_closed(self, runner: SessionRunner, error: EdgetunError | None) -> None:
        self._registry.remove(runner)
        if runner.datagrams is not None:
            self._datagrams_before.add(runner.datagrams)
        admitted = self._admitted.pop(runner, None)
        hello = runner.hello
        if hello is not None and admitted is None:
            self._pending.pop(hello.session_id, None)
        if hello is not None and self._by_session_id.get(hello.session_id) is runner:
            del self._by_session_id[hello.session_id]
        if hello is not None and admitted is not None:
            self.taken_over_total += admitted.is_checked
            siblings = tuple(other for other in self._by_agent.get(hello.agent_id, ()) if other is not runner)
            if siblings:
                self._by_agent[hello.agent_id] = siblings
            else:
                self._by_agent.pop(hello.agent_id, None)
            log.info("agent %s left: %s", hello.agent_id, error or "closed in good order")
            self.on_change()

    @property
    def datagrams(self) -> DatagramCounters:
        """How datagrams of UDP flows left for agents, over all sessions that there were."""
        total = DatagramCounters()
        total.add(self._datagrams_before)
        for runner in self.runners:
            if runner.datagrams is not None:
                total.add(runner.datagrams)
        return total

    def admitted(self) -> list[AdmittedSession]:
        """The sessions that stand, draining ones too."""
        return [AdmittedSession(runner, it.token_id, it.services, it.since) for runner, it in self._admitted.items()]

    @property
    def runners(self) -> list[SessionRunner]:
        return list(self._admitted)
