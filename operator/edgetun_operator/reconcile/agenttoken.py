"""AgentToken -> the Secret with the cluster token's text, and its status, which holds a hash only.

The Secret is the only place where the token stands, so what is in it is never replaced while it can be read: deleting the Secret
is how a token is rotated, deleting the AgentToken how it is revoked.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Final

from edgetun_cluster.client import Cluster
from edgetun_cluster.kinds import AGENT_TOKEN, SECRET, Key, Object
from edgetun_cluster.system_secrets import TOKEN_KEY, secret_data, to_data
from edgetun_core.api.conditions import ConditionType, Reason, Verdict, parse_timestamp
from edgetun_core.api.token import AgentToken
from edgetun_core.credentials import ClusterToken, TokenUnreadable, hash_secret
from edgetun_core.errors import ConfigError
from edgetun_core.pki import fingerprint
from edgetun_operator.decide.conditions import decide_accepted
from edgetun_operator.decide.tunnel import agent_seen
from edgetun_operator.desired.fleet import Desired
from edgetun_operator.desired.labels import MANAGED_BY, TOKEN, is_ours, owner_reference
from edgetun_operator.reconcile.apply import Applier
from edgetun_operator.reconcile.own_ca import OwnCA
from edgetun_operator.reconcile.status import StatusWriter
from edgetun_operator.world import Seen, World

MAX_STEM: Final = 24


class TokenReconciler:
    """`reconcile(key)`."""

    def __init__(
        self,
        cluster: Cluster,
        world: World,
        applier: Applier,
        statuses: StatusWriter,
        ca: OwnCA,
        control_urls: Sequence[str],
        clock: Callable[[], float] = time.time,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._cluster = cluster
        self._world = world
        self._applier = applier
        self._statuses = statuses
        self._ca = ca
        self._control_urls = tuple(control_urls)
        self._clock = clock
        self._random = random_bytes

    async def reconcile(self, key: Key) -> float | None:
        """Seconds until the token ends, when it does."""
        seen = self._world.tokens.get(key.name, key.namespace)
        if seen is None or seen.is_leaving:
            return None
        now = self._clock()
        accepted = {ConditionType.ACCEPTED: decide_accepted(seen.problems)}
        if seen.resource is None:
            await self._statuses.write(AGENT_TOKEN, seen, accepted, {}, now)
            return None
        if not self._ca.is_ready:
            return 1.0
        token, verdict = await self._secret(seen.resource)
        expires = seen.resource.spec.expires
        ends = parse_timestamp(expires) if expires is not None else None
        if ends is not None and ends <= now and verdict.status == "True":
            verdict = Verdict(
                "False", Reason.TOKEN_EXPIRED, f"the token ended at {expires}; write a later spec.expires"
            )
        facts = {
            "tokenId": token.token_id if token is not None else "",
            "secretHash": hash_secret(token.token_id, token.secret) if token is not None else "",
            "secretName": seen.resource.secret_name,
            "agents": self._connected(key),
        }
        verdicts = {**accepted, ConditionType.SECRET_READY: verdict}
        await self._statuses.write(AGENT_TOKEN, seen, verdicts, facts, now)
        await self._forget_others(seen)
        return ends - now if ends is not None and ends > now else None

    async def _secret(self, resource: AgentToken) -> tuple[ClusterToken | None, Verdict]:
        """Makes the Secret, or takes the token that stands in it."""
        namespace, name = resource.metadata.namespace, resource.secret_name
        stands = self._world.token_secrets.get(name, namespace)
        if stands is None:
            # Our copy may be behind: a second token must not take the place of one that was given out.
            stands = await self._cluster.get(SECRET, name, namespace)
        token = None
        if stands is not None and is_ours(stands, AGENT_TOKEN, resource.metadata.name):
            meta = stands["metadata"]
            if all(owner["uid"] != resource.metadata.uid for owner in meta.get("ownerReferences") or ()):
                # It belongs to an AgentToken of this name that was deleted: that token must not come to life again.
                await self._cluster.delete(SECRET, name, namespace, uid=meta["uid"])
                stands = None
        if stands is not None:
            if not is_ours(stands, AGENT_TOKEN, resource.metadata.name):
                return None, Verdict(
                    "False",
                    Reason.OBJECT_CONFLICT,
                    f"Secret {name} is there already and is not this token's; write another spec.secretName",
                )
            token = _read_token(stands)
            if token is None:
                return None, Verdict(
                    "False", Reason.SECRET_INVALID, f"Secret {name} holds no token any more; delete it to get a new one"
                )
        fresh = token is None
        if token is None:
            token = ClusterToken(self._control_urls, self._new_id(resource), self._random(32), self._fingerprint())
        else:
            # Who the agent is stays; where control is may have changed.
            token = ClusterToken(self._control_urls, token.token_id, token.secret, self._fingerprint())
        outcome = await self._applier.ensure(
            _token_secret(resource, token), AGENT_TOKEN, resource.metadata.name, None if fresh else stands
        )
        if outcome.result in ("unchanged", "applied", "contested"):
            return token, Verdict("True", Reason.SECRET_CREATED)
        return None, Verdict("False", Reason.APPLY_FAILED, outcome.message)

    async def _forget_others(self, seen: Seen[AgentToken]) -> None:
        """Removes the Secret of a `secretName` that is no longer asked for, or it would be good for ever."""
        assert seen.resource is not None
        namespace = seen.key.namespace
        others = [
            secret
            for secret in self._world.token_secrets
            if secret["metadata"]["namespace"] == namespace and is_ours(secret, AGENT_TOKEN, seen.key.name)
        ]
        await self._applier.prune(SECRET, others, {seen.resource.secret_name})

    def _connected(self, key: Key) -> int:
        agents = (self._world.agents.get(a.name, a.namespace) for a in self._world.agents_by_token.get(key, ()))
        return sum(1 for agent in agents if agent is not None and agent_seen(agent.status).is_connected)

    def _fingerprint(self) -> str:
        return fingerprint(self._ca.ca_pem.encode())

    def _new_id(self, resource: AgentToken) -> str:
        stem = re.sub(r"[^a-z0-9-]", "-", resource.metadata.name)[:MAX_STEM].strip("-")
        return f"{stem}-{self._random(5).hex()}"


def _read_token(secret: Object) -> ClusterToken | None:
    try:
        return ClusterToken.parse(secret_data(secret).get(TOKEN_KEY, b"").decode("ascii"))
    except (TokenUnreadable, ConfigError, ValueError):
        return None


def _token_secret(resource: AgentToken, token: ClusterToken) -> Desired:
    return Desired(
        SECRET,
        {
            "metadata": {
                "name": resource.secret_name,
                "namespace": resource.metadata.namespace,
                "labels": {
                    "app.kubernetes.io/part-of": "edgetun",
                    MANAGED_BY: "edgetun-operator",
                    TOKEN: resource.metadata.name[:63].rstrip("-."),
                },
                "ownerReferences": [owner_reference(AGENT_TOKEN, resource.metadata.name, resource.metadata.uid)],
            },
            "type": "Opaque",
            "data": to_data({TOKEN_KEY: token.format().encode()}),
        },
    )
