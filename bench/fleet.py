"""The fleet at 10, 1,000 and 10,000 tunnels on a real API server: latency, cost, memory, idle requests, 1,000 agents at once.

python bench/fleet.py [--quick] [--most 10000] [--agents 1000]

Operator, control and exit node share one core, as little as a small installation gives them; the API server has the rest. Costs are
CPU seconds, so that a busy machine changes little; latencies need a quiet one.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import statistics
import time
from collections.abc import Sequence
from typing import Any

from fleet_stage import DOMAIN, NAMESPACES, FleetStage, team, tunnel
from harness import BenchError, Column, Row, parse_arguments, report, run_main, wait_until

SIZES = (10, 1000, 10_000)
BATCH = 200
"""Tunnels whose cost is measured at each size."""
LOOK_EVERY_S = 0.002
SERVED_WITHIN_S = 20.0
IDLE_S = 120.0
"""Watches end by themselves after minutes: a short window sees none of them, or several."""

AT_SIZE = [
    Column("p50", "apply to served p50 ms", 0),
    Column("p99", "p99 ms", 0),
    Column("kubectl", "kubectl start to served p50 ms", 0),
    Column("operator", "operator CPU ms/tunnel", 2),
    Column("control", "control CPU ms/tunnel", 2),
    Column("exit_node", "exit node CPU ms/tunnel", 2),
    Column("api_server", "API server CPU ms/tunnel", 1),
    Column("delta", "delta bytes", 0),
    Column("idle", "idle requests/min", 1),
    Column("idle_cpu", "idle CPU % (operator+control+node)", 2),
]
WHOLE = [
    Column("rss", "RSS MB", 0),
    Column("peak", "peak MB", 0),
    Column("restart", "restarted: settled s", 1),
    Column("restart_cpu", "CPU s", 1),
    Column("rewritten", "objects rewritten", 0),
    Column("resent", "bytes to the exit node", 0),
    Column("expired", "watches expired: served s", 1),
    Column("expired_rewritten", "objects rewritten", 0),
]
AGENTS = [
    Column("placed", "placed", 0),
    Column("errors", "errors", 0),
    Column("all", "all placed s", 1),
    Column("p50", "p50 s", 2),
    Column("cpu", "control CPU ms/agent", 2),
    Column("shown", "all shown s", 1),
]
COMPILE = [Column("parse", "read CPU s", 2), Column("compile", "compile CPU s", 2), Column("bytes", "snapshot KB", 0)]


def main() -> None:
    arguments = parse_arguments(__doc__, repeats=1, seconds=20, extra={"most": SIZES[-1], "agents": 1000})
    if arguments.quick:
        arguments.most, arguments.agents, arguments.seconds = 300, 50, 5.0
    sizes = sorted({min(size, arguments.most) for size in SIZES})
    compiled = Row(f"{arguments.most:,} tunnels")
    compiled.add(**full_compile(arguments.most))
    report("fleet-compile", "A full compile", [compiled], COMPILE, arguments)
    with FleetStage() as stage:
        stage.up()
        rows = []
        made = 0
        for size in sizes:
            made = fill(stage, made, size)
            row = Row(f"{size:,} tunnels")
            rows.append(row)
            row.add(**batch_cost(stage, made, arguments))
            made += batch_of(arguments)
            row.add(**latencies(stage, size, arguments))
            row.add(**idle(stage, arguments.seconds if arguments.quick else IDLE_S))
            print(
                f"  {row.subject}: { ({name: round(value[-1], 2) for name, value in row.figures.items()}) }", flush=True
            )
        report("fleet", "A fleet on a real API server, by number of tunnels", rows, AT_SIZE, arguments)
        agents = Row(f"{arguments.agents:,} agents")
        agents.add(**registrations(stage, arguments.agents, min(made, arguments.most)))
        report("fleet-agents", "Agents that register at the same moment", [agents], AGENTS, arguments)
        title = f"Processes at {arguments.most:,} tunnels"
        report("fleet-whole", title, processes(stage, made), WHOLE, arguments)


def batch_of(arguments: Any) -> int:
    return 20 if arguments.quick else BATCH


def fill(stage: FleetStage, made: int, size: int) -> int:
    begin = time.monotonic()
    stage.create(tunnel(number) for number in range(made, size))
    stage.settle(max(made, size))
    print(f"  {size - made} tunnels made in {time.monotonic() - begin:.0f} s", flush=True)
    return max(made, size)


def batch_cost(stage: FleetStage, made: int, arguments: Any) -> dict[str, float]:
    """What a tunnel costs when there are so many already."""
    count = batch_of(arguments)
    before = stage.cost()
    stage.create(tunnel(number) for number in range(made, made + count))
    stage.settle(made + count)
    return {name: value * 1000 / count for name, value in stage.cost().since(before)._asdict().items()}


def latencies(stage: FleetStage, size: int, arguments: Any) -> dict[str, float]:
    """From the write of a Tunnel to the first visitor who meets it, one after the other; and what goes to the exit node for it."""
    count, with_kubectl = (10, 3) if arguments.quick else (60, 10)
    messages, sent = (stage.control_metric(f"edgetun_control_stream_{what}_total") for what in ("messages", "bytes"))
    took = [served_after(stage, f"a{size}-{number}") for number in range(count)]
    stage.settle(size)
    messages = stage.control_metric("edgetun_control_stream_messages_total") - messages
    sent = stage.control_metric("edgetun_control_stream_bytes_total") - sent
    typed = [served_after(stage, f"k{size}-{number}", with_kubectl=True) for number in range(with_kubectl)]
    return {
        "p50": statistics.median(took) * 1000,
        "p99": quantile(took, 0.99) * 1000,
        "kubectl": statistics.median(typed) * 1000,
        "delta": sent / max(1.0, messages),
    }


def served_after(
    stage: FleetStage, name: str, *, with_kubectl: bool = False, within_s: float = SERVED_WITHIN_S
) -> float:
    wanted = tunnel(0, name)
    visitor = Visitor(stage.http_port, f"{name}.{DOMAIN}")
    begin = time.monotonic()
    if with_kubectl:
        import yaml

        text = yaml.safe_dump({"apiVersion": "edgetun.dev/v1alpha1", "kind": "Tunnel", **wanted})
        stage.cluster.kubectl("apply", "-f", "-", stdin=text)
    else:
        stage.create([wanted])
    while visitor.status() == 404:
        if time.monotonic() - begin > within_s:
            raise BenchError(f"{name} is not served after {within_s:g} s\n{stage.control.tail()}")
        time.sleep(LOOK_EVERY_S)
    took = time.monotonic() - begin
    visitor.close()
    return took


class Visitor:
    """Asks for one host again and again. Without an agent a route that is known answers 503, one that is not 404."""

    def __init__(self, port: int, host: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._request = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()

    def status(self) -> int:
        self._socket.sendall(self._request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._socket.recv(65536)
        head, _, body = answer.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        while len(body) < length:
            body += self._socket.recv(65536)
        return int(head[9:12])

    def close(self) -> None:
        self._socket.close()


def idle(stage: FleetStage, seconds: float) -> dict[str, float]:
    before, begin = stage.cost(), time.monotonic()
    requests = stage.requests(seconds)
    spent = stage.cost().since(before)
    took_s = time.monotonic() - begin
    print(f"  idle: {requests}", flush=True)
    return {
        "idle": sum(requests.values()) * 60 / (seconds + 2.0),
        "idle_cpu": (spent.operator + spent.control + spent.exit_node) / took_s * 100,
    }


def registrations(stage: FleetStage, count: int, tunnels: int) -> dict[str, float]:
    """Agents of a hundred teams, each for one tunnel of its team's, all in the same moment, with the agent's own code."""
    from edgetun_agent.enroll import enroll
    from edgetun_core.credentials import ClusterToken
    from edgetun_core.enrollment import EnrollRequest
    from edgetun_core.errors import EdgetunError
    from edgetun_core.process import raise_open_files_limit

    raise_open_files_limit()
    client = stage.cluster.client
    teams = [team(number) for number in range(min(count, NAMESPACES))]
    for name in teams:
        meta = {"name": "laptops", "namespace": name}
        client.apply({"apiVersion": "edgetun.dev/v1alpha1", "kind": "AgentToken", "metadata": meta, "spec": {}})

    def secret(name: str) -> str:
        found = client.get("v1", "Secret", "laptops-token", name)
        return base64.b64decode(found["data"]["token"]).decode() if found else ""

    wait_until("the tokens' Secrets", lambda: all(secret(name) for name in teams), [stage.operator], 60)
    tokens = {name: ClusterToken.parse(secret(name)) for name in teams}
    stage.settle(tunnels)

    async def one(number: int) -> tuple[float, str]:
        begin = time.monotonic()
        own = tunnel(number % tunnels)["metadata"]
        request = EnrollRequest(f"laptop-{number}", want=(f"{own['namespace']}/{own['name']}",))
        try:
            enrolled = await enroll(tokens[own["namespace"]], request, timeout_s=60)
        except EdgetunError as error:
            return time.monotonic() - begin, str(error)
        return time.monotonic() - begin, "" if enrolled.endpoints else "no endpoint"

    async def everybody() -> list[tuple[float, str]]:
        return await asyncio.gather(*(one(number) for number in range(count)))

    before, begin = stage.cost(), time.monotonic()
    answers = stage.run(everybody())
    took_s = time.monotonic() - begin
    control = stage.cost().since(before).control
    errors = [error for _, error in answers if error]
    for error in sorted(set(errors))[:5]:
        print(f"  {errors.count(error)} x {error}")

    def shown() -> bool:
        time.sleep(0.5)
        return stage.control_metric("edgetun_control_agents_written_total") >= count - len(errors)

    wait_until("all agents are shown", shown, [stage.control], 120)
    return {
        "placed": count - len(errors),
        "errors": len(errors),
        "all": took_s,
        "p50": statistics.median(took for took, _ in answers),
        "cpu": control * 1000 / count,
        "shown": time.monotonic() - begin,
    }


def processes(stage: FleetStage, tunnels: int) -> list[Row]:
    """Memory; then each is started anew, and the API server forgets its history. None of it may rewrite an object."""
    stage.settle(tunnels)
    rows = {name: Row(name) for name in ("operator", "control", "exit node")}
    for name, process in zip(rows, (stage.operator, stage.control, stage.exit_node), strict=True):
        rows[name].add(rss=process.rss_bytes() / 1e6, peak=process.rss_bytes(peak=True) / 1e6)
    for name, stop, start in (
        ("operator", stage.operator.stop, stage.start_operator),
        ("control", stage.control.stop, stage.start_control),
    ):
        before = stage.versions()
        stop(20)
        begin = time.monotonic()
        start()
        stage.settle(tunnels)
        rows[name].add(
            restart=time.monotonic() - begin - stage.QUIET_S,
            restart_cpu=(stage.operator if name == "operator" else stage.control).cpu_s(),
            rewritten=rewritten(before, stage.versions()),
        )
        peak = (stage.operator if name == "operator" else stage.control).rss_bytes(peak=True) / 1e6
        rows[name].add(peak=max(peak, rows[name].figures["peak"].pop()))
    # The exit node came back with the snapshot that it has: control, new or not, sends what is another one.
    rows["control"].add(resent=stage.control_metric("edgetun_control_stream_bytes_total"))
    before = stage.versions()
    stage.cluster.expire_watches()
    rows["operator"].add(expired=served_after(stage, f"e{tunnels}", with_kubectl=True, within_s=60))
    stage.settle(tunnels)
    rows["operator"].add(expired_rewritten=rewritten(before, stage.versions()))
    return list(rows.values())


def rewritten(before: dict[str, str], after: dict[str, str]) -> int:
    return sum(after.get(key) != version for key, version in before.items())


def full_compile(count: int) -> dict[str, float]:
    """From the objects as the API server gives them to the bytes of a snapshot, in CPU seconds of this process."""
    from edgetun_core.api.exitpool import ExitPool
    from edgetun_core.api.load import parse_resource
    from edgetun_core.compile import compile_region
    from edgetun_core.snapshot import encode_snapshot

    kind = {"apiVersion": "edgetun.dev/v1alpha1", "kind": "Tunnel"}
    pool = {"apiVersion": kind["apiVersion"], "kind": "ExitPool", "metadata": {"name": "bench"}}
    spec = {"regions": [{"name": "here"}], "domains": [f"*.{DOMAIN}"]}
    begin = time.process_time()
    parsed = [
        parse_resource(obj)[0] for obj in [{**pool, "spec": spec}, *({**kind, **tunnel(n)} for n in range(count))]
    ]
    resources: list[Any] = [resource for resource in parsed if resource is not None]
    read = time.process_time()
    snapshot, problems = compile_region(resources, "bench", "here", 1)
    data = encode_snapshot(snapshot)
    done = time.process_time()
    if len(snapshot.tunnels) != count or problems or not isinstance(resources[0], ExitPool):
        raise BenchError(f"the compile went wrong: {problems[:3]}")
    return {"parse": read - begin, "compile": done - read, "bytes": len(data) / 1000}


def quantile(values: Sequence[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


if __name__ == "__main__":
    run_main(main)
