"""Where agents are placed: the nearest with room, and there they stay unless another is clearly better."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from edgetun_control.placement import (
    BETTER_BY_S,
    MOST_ENDPOINTS,
    FleetPlacement,
    NodeView,
    RegionView,
    decide_placement,
    endpoints_of,
    round_trip_s,
)
from edgetun_core.enrollment import Endpoint, EnrollRequest, Probe

NAMES = ["ams", "fra", "nyc", "sin"]


def view(region: str, sessions: int = 0, capacity: int = 100, nodes: tuple[NodeView, ...] = ()) -> RegionView:
    return RegionView("p", region, nodes, (Endpoint(f"{region}.example", 7443, 7443),), sessions, capacity)


def probe(region: str, rtt_ms: float, quic_ms: float = 0.0) -> Probe:
    return Probe("p", region, rtt_ms / 1000, quic_ms / 1000)


def by_name(*probes: Probe) -> dict[str, Probe]:
    return {f"{one.pool}/{one.region}": one for one in probes}


REGIONS = st.lists(
    st.builds(view, st.sampled_from(NAMES), st.integers(0, 150), st.sampled_from([0, 1, 50, 100])),
    unique_by=lambda one: one.region,
    max_size=4,
)
PROBES = st.lists(
    st.builds(
        probe, st.sampled_from(NAMES), st.sampled_from([0.0, 1.0, 9.0, 10.0, 80.0, 300.0]), st.sampled_from([0.0, 8.0])
    ),
    max_size=4,
).map(lambda found: by_name(*found))
CURRENT = st.sampled_from(["", *(f"p/{name}" for name in NAMES), "p/gone"])
AGENTS = st.sampled_from(["laptop", "desk", "ci-1"])


@given(REGIONS, PROBES, CURRENT, AGENTS)
def test_an_agent_is_placed_whenever_there_is_a_region_and_never_twice_on_one(
    regions: list[RegionView], probes: dict[str, Probe], current: str, agent: str
) -> None:
    ranked = decide_placement(regions, probes, current, agent).ranked
    assert bool(ranked) == bool(regions)
    assert len({one.name for one in ranked}) == len(ranked)
    assert {one.name for one in ranked} <= {one.name for one in regions}


@given(REGIONS, PROBES, CURRENT, AGENTS)
def test_a_full_region_takes_nobody_new_while_another_has_room(
    regions: list[RegionView], probes: dict[str, Probe], current: str, agent: str
) -> None:
    ranked = decide_placement(regions, probes, current, agent).ranked
    if any(one.load < 1.0 for one in regions):
        assert all(one.load < 1.0 or one.name == current for one in ranked)


@given(REGIONS, PROBES, CURRENT, AGENTS)
def test_a_region_that_does_not_answer_comes_after_all_that_do(
    regions: list[RegionView], probes: dict[str, Probe], current: str, agent: str
) -> None:
    ranked = decide_placement(regions, probes, current, agent).ranked
    answers = [round_trip_s(probes.get(one.name)) is not None for one in ranked]
    if any(answers):
        assert answers[0]


@given(REGIONS, PROBES, CURRENT, AGENTS)
def test_asking_again_from_where_it_was_placed_moves_nobody(
    regions: list[RegionView], probes: dict[str, Probe], current: str, agent: str
) -> None:
    ranked = decide_placement(regions, probes, current, agent).ranked
    if ranked:
        assert decide_placement(regions, probes, ranked[0].name, agent).ranked[0] == ranked[0]


@given(REGIONS, PROBES, CURRENT, AGENTS, st.randoms(use_true_random=False))
def test_the_order_in_which_regions_are_named_does_not_matter(
    regions: list[RegionView], probes: dict[str, Probe], current: str, agent: str, rng: object
) -> None:
    shuffled = list(regions)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert decide_placement(shuffled, probes, current, agent) == decide_placement(regions, probes, current, agent)


@given(REGIONS, PROBES, AGENTS)
def test_a_region_that_comes_nearer_is_never_left_for_it(
    regions: list[RegionView], probes: dict[str, Probe], agent: str
) -> None:
    ranked = decide_placement(regions, probes, "", agent).ranked
    best = round_trip_s(probes.get(ranked[0].name)) if ranked else None
    if best is not None:
        nearer = {**probes, ranked[0].name: Probe("p", ranked[0].region, best / 2)}
        assert decide_placement(regions, nearer, "", agent).ranked[0] == ranked[0]


def test_the_nearest_wins_by_the_better_transport() -> None:
    probes = by_name(probe("ams", 30, 12), probe("fra", 20))
    assert [one.region for one in decide_placement([view("ams"), view("fra")], probes, "", "a").ranked] == [
        "ams",
        "fra",
    ]


def test_a_round_trip_that_wavers_moves_nobody_and_a_clearly_better_region_does() -> None:
    regions = [view("ams"), view("fra")]
    wavers = by_name(probe("ams", 20), probe("fra", 16))
    assert decide_placement(regions, wavers, "p/ams", "a").ranked[0].region == "ams"
    near = by_name(probe("ams", 1.0), probe("fra", 1.0 + BETTER_BY_S * 900))
    assert decide_placement(regions, near, "p/fra", "a").ranked[0].region == "fra"
    better = by_name(probe("ams", 80), probe("fra", 16))
    assert decide_placement(regions, better, "p/ams", "a").ranked[0].region == "fra"


def test_load_sends_newcomers_to_a_region_a_little_further_away() -> None:
    probes = by_name(probe("ams", 10), probe("fra", 14))
    choice = decide_placement([view("ams", 95), view("fra", 10)], probes, "", "a")
    assert choice.ranked[0].region == "fra"


def test_agents_that_measure_nothing_are_spread() -> None:
    regions = [view(name) for name in NAMES]
    chosen = {decide_placement(regions, {}, "", f"agent-{n}").ranked[0].region for n in range(50)}
    assert chosen == set(NAMES)


def test_endpoints_are_the_regions_own_nodes_without_those_that_drain_then_one_of_each_other_region() -> None:
    nodes = tuple(
        NodeView(Endpoint(f"10.0.0.{n}", 7443, 7443, f"n{n}"), sessions=0, is_draining=n == 2) for n in (1, 2, 3)
    )
    choice = decide_placement(
        [view("ams", nodes=nodes), view("fra")], by_name(probe("ams", 5), probe("fra", 90)), "", "laptop"
    )
    found = [endpoint.host for endpoint in endpoints_of(choice, "laptop")]
    assert sorted(found[:2]) == ["10.0.0.1", "10.0.0.3"]
    assert found[2:] == ["fra.example"]


class TwoPools:
    def regions_for(self, service: str) -> list[RegionView]:
        if service == "t/other-pool":
            return [another_pool("q", "sin")]
        return [view("ams"), view("fra")] if service in ("t/everywhere", "t/spared") else [view("fra")]

    def spare_for(self, service: str) -> str:
        return {"t/spared": "auto"}.get(service, "")


def another_pool(pool: str, region: str) -> RegionView:
    return RegionView(pool, region, (), (Endpoint(f"{region}.{pool}", 1, 1),))


def test_every_tunnels_regions_are_kept_to_and_every_pool_gets_a_place() -> None:
    placement = FleetPlacement(TwoPools())
    request = EnrollRequest("laptop", can_probe=True, probes=(probe("ams", 1), probe("fra", 50)))
    placed = placement.place(request, ("t/everywhere", "t/fra-only", "t/other-pool"), 0.0)
    assert placed.placed == "p/fra,q/sin"
    assert [endpoint.host for endpoint in placed.endpoints] == ["fra.example", "sin.q"]
    assert placed.offers == ()
    free = placement.place(request, ("t/everywhere",), 0.0)
    assert free.placed == "p/ams"
    assert {offer.region for offer in free.offers} == {"ams", "fra"}
    old = placement.place(msgspec.structs.replace(request, can_probe=False, probes=()), ("t/everywhere",), 0.0)
    assert old.endpoints
    assert old.offers == ()


def test_a_spare_region_is_the_next_best_or_the_one_asked_for_and_never_where_the_agent_is_placed() -> None:
    regions = [view("ams"), view("fra"), view("sin")]
    near = by_name(probe("ams", 5), probe("fra", 20), probe("sin", 90))
    choice = decide_placement(regions, near, "", "laptop")

    def spares(asked: str) -> list[str]:
        return [endpoint.host for endpoint in endpoints_of(choice, "laptop", asked) if endpoint.spare]

    assert spares("") == []
    assert spares("auto") == ["fra.example"]
    assert spares("sin") == ["sin.example"]
    assert spares("ams") == ["fra.example"], "it is placed there already"
    assert spares("nowhere") == []
    assert [endpoint.host for endpoint in endpoints_of(choice, "laptop", "sin")] == [
        "ams.example",
        "fra.example",
        "sin.example",
    ]
    asleep = decide_placement([view("ams"), view("fra", capacity=0)], {}, "", "laptop")
    assert not any(endpoint.spare for endpoint in endpoints_of(asleep, "laptop", "auto")), "nobody is there"


def test_a_large_region_leaves_room_for_the_spare_one() -> None:
    nodes = tuple(NodeView(Endpoint(f"10.0.0.{n}", 7443, 7443, f"n{n}")) for n in range(20))
    choice = decide_placement(
        [view("ams", nodes=nodes), view("fra")], by_name(probe("ams", 5), probe("fra", 9)), "", "a"
    )
    found = endpoints_of(choice, "a", "auto")
    assert len(found) == MOST_ENDPOINTS
    assert [endpoint.host for endpoint in found if endpoint.spare] == ["fra.example"]


def test_an_agent_asks_for_its_spare_region_when_it_registers() -> None:
    request = EnrollRequest("laptop", can_probe=True, probes=(probe("ams", 1), probe("fra", 50)), spare="fra")
    placed = FleetPlacement(TwoPools()).place(request, ("t/everywhere",), 0.0)
    assert [(endpoint.host, endpoint.spare) for endpoint in placed.endpoints] == [
        ("ams.example", False),
        ("fra.example", True),
    ]


def test_a_tunnels_spare_region_holds_for_its_agents_unless_they_ask_for_another() -> None:
    request = EnrollRequest("laptop", can_probe=True, probes=(probe("ams", 1), probe("fra", 50)))
    placement = FleetPlacement(TwoPools())

    def spares(*services: str, asked: str = "") -> list[str]:
        placed = placement.place(msgspec.structs.replace(request, spare=asked), services, 0.0)
        return [endpoint.host for endpoint in placed.endpoints if endpoint.spare]

    assert spares("t/everywhere") == []
    assert spares("t/spared") == spares("t/everywhere", "t/spared") == ["fra.example"]
    assert spares("t/spared", asked="nowhere") == []
    assert spares("t/spared", "t/other-pool") == ["fra.example"], "the other pool's tunnels asked for none"
