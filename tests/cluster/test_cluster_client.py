"""The typed client, informers, Leases and kopf's triggers on a real API server."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from edgetun_cluster.client import Cluster
from edgetun_cluster.connection import connect
from edgetun_cluster.errors import AlreadyExists, ApiAbsent, ClusterUnreachable, Conflict, Forbidden, ObjectNotFound
from edgetun_cluster.informer import Change, Informer
from edgetun_cluster.kinds import (
    CERTIFICATE,
    CONFIG_MAP,
    DEPLOYMENT,
    POD_METRICS,
    SECRET,
    Key,
    Object,
)
from edgetun_cluster.leases import LeaderElection
from edgetun_operator.triggers import run_triggers
from edgetun_operator.work import Item
from support.cluster import ControlPlane
from support.operator import crds, token
from support.waiting import eventually


@pytest.fixture
async def api(kubeconfig: Path) -> AsyncIterator[Cluster]:
    async with Cluster(await connect(kubeconfig)) as cluster:
        yield cluster


def config(namespace: str, name: str = "a", **data: str) -> Object:
    return {"metadata": {"name": name, "namespace": namespace}, "data": data}


async def test_a_missing_object_is_none_and_a_missing_kind_is_a_typed_answer(api: Cluster, namespace: str) -> None:
    assert await api.get(CONFIG_MAP, "nope", namespace) is None
    assert await api.delete(CONFIG_MAP, "nope", namespace) is False
    assert await api.patch(CONFIG_MAP, "nope", namespace, {}, manager="m") is None
    with pytest.raises(ApiAbsent):
        await api.get(CERTIFICATE, "nope", namespace)
    with pytest.raises(ApiAbsent):
        await api.list(CERTIFICATE)
    with pytest.raises(ObjectNotFound):
        await api.create(CONFIG_MAP, config("no-such-namespace"), manager="m")
    assert await api.has_api(DEPLOYMENT)
    assert not await api.has_api(CERTIFICATE)
    assert not await api.has_api(POD_METRICS)


async def test_applying_the_same_again_rewrites_nothing_and_managers_do_not_meet(api: Cluster, namespace: str) -> None:
    first = await api.apply(CONFIG_MAP, config(namespace, x="1"), manager="one")
    again = await api.apply(CONFIG_MAP, config(namespace, x="1"), manager="one")
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    both = await api.apply(CONFIG_MAP, config(namespace, y="2"), manager="two")
    assert both["data"] == {"x": "1", "y": "2"}
    with pytest.raises(Conflict):
        await api.apply(CONFIG_MAP, config(namespace, x="9"), manager="two", force=False)
    with pytest.raises(AlreadyExists):
        await api.create(CONFIG_MAP, config(namespace), manager="one")


async def test_an_object_that_was_made_anew_is_not_taken_for_the_old_one(api: Cluster, namespace: str) -> None:
    first = await api.apply(CONFIG_MAP, config(namespace, x="1"), manager="one")
    uid = first["metadata"]["uid"]
    assert await api.delete(CONFIG_MAP, "a", namespace, uid=uid)
    gone = config(namespace, x="2")
    gone["metadata"]["uid"] = uid
    with pytest.raises(Conflict):
        await api.apply(CONFIG_MAP, gone, manager="one")
    await api.apply(CONFIG_MAP, config(namespace, x="1"), manager="one")
    with pytest.raises(Conflict):
        await api.apply(CONFIG_MAP, gone, manager="one")
    with pytest.raises(Conflict):
        await api.delete(CONFIG_MAP, "a", namespace, uid=uid)


async def test_rights_that_are_missing_are_a_typed_answer(cluster: ControlPlane, namespace: str) -> None:
    nobody = await asyncio.to_thread(cluster.service_account_kubeconfig, namespace, "nobody")
    async with Cluster(await connect(nobody)) as api:
        with pytest.raises(Forbidden):
            await api.list(SECRET)


async def test_no_answer_in_time_is_an_error_with_a_deadline(api: Cluster, namespace: str) -> None:
    elsewhere = api.connection._replace(server="https://127.0.0.1:9")
    async with Cluster(elsewhere, timeout_s=0.5) as nowhere:
        with pytest.raises(ClusterUnreachable):
            async with asyncio.timeout(5):
                await nowhere.get(CONFIG_MAP, "a", namespace)


async def test_an_informer_follows_every_change(api: Cluster, namespace: str) -> None:
    seen: list[tuple[str, str]] = []

    def note(change: Change[Object]) -> None:
        seen.append((change.type, change.key.name))

    await api.apply(CONFIG_MAP, config(namespace, "before"), manager="m")
    informer: Informer[Object] = Informer(
        api, CONFIG_MAP, namespace=namespace, field_selector="metadata.name!=kube-root-ca.crt"
    )
    informer.on_change(note)
    informer.start()
    await informer.synced(10)
    await api.apply(CONFIG_MAP, config(namespace, "a", x="1"), manager="m")
    await api.apply(CONFIG_MAP, config(namespace, "a", x="2"), manager="m")
    await api.delete(CONFIG_MAP, "a", namespace)
    await eventually(lambda: ("deleted", "a") in seen, 10)
    assert seen == [("added", "before"), ("added", "a"), ("modified", "a"), ("deleted", "a")]
    assert set(informer.store) == {Key(namespace, "before")}
    assert "managedFields" not in informer.store[Key(namespace, "before")]["metadata"]
    await informer.close()


async def test_an_informer_lists_again_when_its_history_is_gone_and_misses_nothing(
    cluster: ControlPlane, api: Cluster, namespace: str
) -> None:
    seen: list[tuple[str, str]] = []
    await api.apply(CONFIG_MAP, config(namespace, "goes"), manager="m")
    informer: Informer[Object] = Informer(api, CONFIG_MAP, namespace=namespace)
    informer.on_change(lambda change: seen.append((change.type, change.key.name)))
    informer.start()
    await informer.synced(10)
    await informer.close()  # it is away while things change and history is forgotten
    await api.delete(CONFIG_MAP, "goes", namespace)
    await api.apply(CONFIG_MAP, config(namespace, "comes"), manager="m")
    await asyncio.to_thread(cluster.expire_watches)
    informer.start()
    await eventually(lambda: ("deleted", "goes") in seen and ("added", "comes") in seen, 30)
    assert informer.lists >= 2
    await informer.close()


async def test_an_absent_kind_is_an_empty_copy(api: Cluster) -> None:
    informer: Informer[Object] = Informer(api, CERTIFICATE)
    informer.start()
    await informer.synced(10)
    assert informer.is_absent
    assert len(informer) == 0
    await informer.close()


async def test_one_leads_and_the_next_one_follows_when_it_gives_the_lease_back_or_dies(
    api: Cluster, namespace: str
) -> None:
    def election(identity: str) -> LeaderElection:
        return LeaderElection(api, "l", namespace, identity, manager="m", lease_s=2.0, renew_s=0.3, try_s=0.2)

    one, two = election("one"), election("two")
    one.start()
    await asyncio.wait_for(one.elected(), 5)
    two.start()
    await asyncio.sleep(0.5)
    assert (one.is_leader, two.is_leader) == (True, False)
    await one.close()
    await asyncio.wait_for(two.elected(), 1.5)
    assert not one.is_leader

    three = election("three")
    three.start()
    assert two._task is not None
    two._task.cancel()  # dies without a word
    await asyncio.wait_for(three.elected(), 8)
    assert not two.is_leader  # by its own clock, before the other was elected
    for each in (two, three):
        await each.close()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_kopf_wakes_the_queue_and_leaves_no_trace(
    cluster: ControlPlane, kubeconfig: Path, namespace: str, apply: Callable[..., Object]
) -> None:
    await asyncio.to_thread(cluster.install_crds, crds())
    found: list[Item] = []
    running = asyncio.create_task(run_triggers(found.append, await connect(kubeconfig)))
    try:
        await asyncio.to_thread(apply, token(namespace, "laptops"))
        await eventually(lambda: Item("AgentToken", Key(namespace, "laptops")) in found, 20)
        stored = await asyncio.to_thread(cluster.client.get, "edgetun.dev/v1alpha1", "AgentToken", "laptops", namespace)
        assert "finalizers" not in stored["metadata"]
        assert "annotations" not in stored["metadata"]
        assert [entry["manager"] for entry in stored["metadata"]["managedFields"]] == ["edgetun-tests"]
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        # kopf closes its loop before its TLS connections have said goodbye: here, and not in the middle of another test.
        await eventually(lambda: not any(thread.name == "kopf" for thread in threading.enumerate()), 30)
        gc.collect()
