"""Header rules of a route, on requests and on responses. Heads are shared, so each changed head is made once and kept."""

from __future__ import annotations

from edgetun_core.http.exchange import Handler, RequestSink, ResponseSink
from edgetun_core.http.message import Fields, Peer, RequestHead, ResponseHead
from edgetun_core.snapshot import HeaderRules
from edgetun_exitnode.stage_memos import StageMemos, next_serial


class CompiledHeaderRules:
    """Rules ready to apply: remove, then set (replaces every field of the name), then add."""

    __slots__ = ("_added", "_dropped")

    def __init__(self, rules: HeaderRules) -> None:
        dropped = {name.encode() for name in rules.remove} | {name.encode() for name, _ in rules.set}
        self._dropped = frozenset(dropped)
        self._added: Fields = tuple(
            (name.encode(), value.encode("latin-1")) for name, value in (*rules.set, *rules.add)
        )

    @staticmethod
    def is_needed(rules: HeaderRules) -> bool:
        return bool(rules.remove or rules.set or rules.add)

    def apply(self, fields: Fields) -> Fields:
        dropped = self._dropped
        return (*[field for field in fields if field[0] not in dropped], *self._added)


class RequestHeaderStage:
    """Changes the head of every request that passes."""

    __slots__ = ("_memo", "_next", "_rules", "_serial")

    def __init__(self, rules: HeaderRules, following: Handler, memos: StageMemos | None = None) -> None:
        self._rules = CompiledHeaderRules(rules)
        self._next = following
        self._memo = (memos or StageMemos()).changed_requests
        self._serial = next_serial()

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        key = (head, self._serial)
        changed = self._memo.get(key)
        if changed is None:
            changed = head.replace(fields=self._rules.apply(head.fields))
            if head.recurs:
                changed.recurs = self._memo.put(key, changed)
        return self._next.open(changed, peer, end, client)


class ResponseHeaderStage:
    """Changes the final head of every response that passes back."""

    __slots__ = ("_memo", "_next", "_rules", "_serial")

    def __init__(self, rules: HeaderRules, following: Handler, memos: StageMemos | None = None) -> None:
        self._rules = CompiledHeaderRules(rules)
        self._next = following
        self._memo = (memos or StageMemos()).changed_responses
        self._serial = next_serial()

    def open(self, head: RequestHead, peer: Peer, end: bool, client: ResponseSink) -> RequestSink:
        return self._next.open(head, peer, end, _ChangedResponse(self, client))

    def change(self, head: ResponseHead) -> ResponseHead:
        key = (head, self._serial)
        changed = self._memo.get(key)
        if changed is None:
            changed = ResponseHead(head.status, self._rules.apply(head.fields))
            if head.recurs:
                changed.recurs = self._memo.put(key, changed)
        return changed


class _ChangedResponse:
    __slots__ = (
        "_client",
        "_stage",
        "on_data",
        "on_interim",
        "on_reset",
        "on_trailers",
        "pause_request",
        "resume_request",
    )

    def __init__(self, stage: ResponseHeaderStage, client: ResponseSink) -> None:
        self._stage = stage
        self._client = client
        self.on_interim = client.on_interim
        self.on_data = client.on_data
        self.on_trailers = client.on_trailers
        self.on_reset = client.on_reset
        self.pause_request = client.pause_request
        self.resume_request = client.resume_request

    def on_head(self, head: ResponseHead, end: bool) -> None:
        self._client.on_head(self._stage.change(head), end)
