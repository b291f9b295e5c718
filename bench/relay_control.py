"""Control and an agent for `relay.py`, in one process: exit nodes follow it without a Kubernetes.

python relay_control.py FOLDER ORIGIN_URL CONTROL_PORT HOLDER_TUNNEL_PORT TRANSPORT
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from edgetun_agent.connect import Agent
from edgetun_agent.serve import Origins
from edgetun_core.enrollment import Endpoint
from edgetun_core.fleet_identity import inner_name
from edgetun_core.pki import DevelopmentCA, Trust
from edgetun_core.wire.hello import Hello
from support.following import TOKEN, Control, Published
from support.whole import TUNNEL, credential, snapshot


async def run(folder: Path, origin: str, control_port: int, tunnel_port: int, transport: str) -> None:
    ca = DevelopmentCA(folder / "ca")
    obey = snapshot(origin)
    (folder / "ca.pem").write_bytes(ca.ca_pem)
    (folder / "token").write_text(TOKEN)
    control = Control(ca, folder, Published(obey))
    control.port = control_port
    await control.start()
    origins = Origins(obey.tunnels, probe=False)
    agent = Agent(
        endpoints=[Endpoint("127.0.0.1", tunnel_port, tunnel_port, "holder", inner_name("pool", "here"))],
        trust=Trust(ca.ca_pem),
        hello=lambda session_id: Hello(
            agent_id="laptop", session_id=session_id, credential=credential(), services=(TUNNEL,)
        ),
        handler=origins,
        transport=transport,
        sessions=1,
    )
    # Before the node obeys, it knows no agent.
    while not any(node.name.node == "holder" and node.feed.is_current for node in control.fleet):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    agent.start()
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    await agent.close()
    await origins.close()
    await control.stop()


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]))
