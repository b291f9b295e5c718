"""`edgetun up`, `validate` and `compile`, and `edgetun-exitnode --snapshot`: what people do with manifests."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgetun_core.exits import ExitCode
from support.commands import Command, an_origin, run, visit

PORTS = ("--http-port", "0", "--https-port", "-1")

TUNNEL = """\
apiVersion: edgetun.dev/v1alpha1
kind: Tunnel
metadata:
  name: {name}
spec:
  hostnames: [{name}.localhost]
  origin:
    url: {url}
"""


def written(folder: Path, url: str, name: str = "shop") -> Path:
    path = folder / "tunnel.yaml"
    path.write_text(TUNNEL.format(name=name, url=url))
    return path


def test_an_edit_takes_effect_and_a_broken_one_keeps_what_was(tmp_path: Path) -> None:
    with an_origin("one") as one, an_origin("two") as two:
        manifest = written(tmp_path, one.url)
        with Command("edgetun", "up", "-f", str(manifest), "--state", str(tmp_path), *PORTS) as edge:
            port = int(edge.line(r"http://shop\.localhost:(\d+)")[1])
            edge.line("ready in")
            assert visit(port, host="shop.localhost").body == "one /"
            manifest.write_text(TUNNEL.format(name="shop", url="nonsense"))
            edge.line("the tunnels stay as they were")
            edge.line(r"tunnel\.yaml:8")
            assert visit(port, host="shop.localhost").body == "one /"
            written(tmp_path, two.url, "store")
            edge.line("the files changed: 1 tunnel")
            assert visit(port, host="store.localhost").body == "two /"
            assert visit(port, host="shop.localhost").status == 404
            manifest.unlink()
            edge.line("(?s)the tunnels stay as they were.*the tunnels stay as they were")
            assert visit(port, host="store.localhost").body == "two /"
            assert edge.stop() == ExitCode.OK
            assert "Traceback" not in edge.said


BAD_URL = TUNNEL.format(name="shop", url="localhost 3000")


@pytest.mark.parametrize(
    ("command", "text", "says"),
    [
        ("up", BAD_URL, ":8"),
        ("validate", BAD_URL, ":8"),
        ("compile", BAD_URL, ":8"),
        ("up", TUNNEL.format(name="shop", url="http://localhost:1").replace("hostnames", "hostname"), ":6"),
        ("validate", "kind: [", ":2: not YAML"),
        ("compile", "kind: Tunnnel\napiVersion: edgetun.dev/v1alpha1\n", "Tunnnel"),
    ],
)
def test_a_mistake_in_a_manifest_is_told_with_its_line(command: str, text: str, says: str, tmp_path: Path) -> None:
    manifest = tmp_path / "tunnel.yaml"
    manifest.write_text(text)
    output = ("-o", str(tmp_path / "out")) if command == "compile" else ()
    more = ("--state", str(tmp_path), *PORTS) if command == "up" else ()
    done = run("edgetun", command, "-f", str(manifest), *output, *more)
    assert done.ended() == (ExitCode.FAILURE if command == "validate" else ExitCode.USAGE)
    assert f"{manifest}" in done.said
    assert says in done.said
    assert "Traceback" not in done.said
    assert not (tmp_path / "out").exists()


def test_validate_is_content_with_every_example_and_speaks_json(tmp_path: Path) -> None:
    examples = Path(__file__).parents[3] / "examples"
    assert run("edgetun", "validate", "-f", str(examples)).ended() == ExitCode.OK
    bad = tmp_path / "bad.yaml"
    bad.write_text(TUNNEL.format(name="shop", url="x y"))
    done = run("edgetun", "validate", "--json", "-f", str(bad))
    problems = [json.loads(line) for line in done.said.splitlines()]
    assert problems
    assert all(problem["line"] for problem in problems)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("up",), "--file is missing"),
        (("up", "-f", "/nonexistent.yaml"), "/nonexistent.yaml"),
        (("validate", "-f", "/nonexistent.yaml"), "/nonexistent.yaml"),
        (("compile", "-f", "MANIFEST"), "--output is missing"),
        (("compile", "-f", "MANIFEST", "-o", "/nonexistent/out"), "/nonexistent"),
        (("compile", "-f", "MANIFEST", "-o", "OUT", "--pool", "none"), 'no ExitPool is called "none"'),
        (("up", "-f", "MANIFEST", "--region", "mars"), "mars"),
    ],
)
def test_wrong_input_is_exit_2(argv: tuple[str, ...], says: str, tmp_path: Path) -> None:
    named = {"MANIFEST": str(written(tmp_path, "http://localhost:3000")), "OUT": str(tmp_path / "out")}
    done = run("edgetun", *(named.get(word, word) for word in argv))
    assert done.ended() == ExitCode.USAGE, done.said
    assert says in done.said
    assert "Traceback" not in done.said


def test_a_snapshot_is_obeyed_and_taken_anew_when_it_changes(tmp_path: Path) -> None:
    out = tmp_path / "region.snapshot"
    assert run("edgetun", "compile", "-f", str(written(tmp_path, "http://localhost:1")), "-o", str(out)).ended() == 0
    ports = ("--listen", "127.0.0.1", *PORTS, "--tunnel-port", "0")
    with Command("edgetun-exitnode", "--snapshot", str(out), "--state", str(tmp_path / "state"), *ports) as node:
        port = int(node.line(r"http on 127\.0\.0\.1:(\d+)")[1])
        node.line("ready in")
        node.line("warning: .*no agent can be let in")
        problem = json.loads(visit(port, host="shop.localhost").body)
        assert problem["reason"] == "NoAgentConnected"
        assert visit(port, host="store.localhost").status == 404
        written(tmp_path, "http://localhost:1", "store")
        assert run("edgetun", "compile", "-f", str(tmp_path / "tunnel.yaml"), "-o", str(out)).ended() == ExitCode.OK
        node.line(r"snapshot \d+: 1 tunnel")
        assert visit(port, host="shop.localhost").status == 404
        out.write_bytes(b"garbage")
        node.line("warning: keeping the last good snapshot")
        assert visit(port, host="shop.localhost").status == 404
        assert node.stop() == ExitCode.OK


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "either --control or --snapshot"),
        (("--snapshot", "/nonexistent"), "edgetun compile"),
        (("--snapshot", "/dev/null"), "edgetun compile"),
        (("--snapshot", "SNAPSHOT", "--certificate", "only-one.pem"), "CERT:KEY"),
        (("--snapshot", "SNAPSHOT", "--certificate", "/no.pem:/no.key"), "/no.pem"),
    ],
)
def test_wrong_input_of_an_exit_node_is_exit_2(flags: tuple[str, ...], says: str, tmp_path: Path) -> None:
    out = tmp_path / "s"
    assert run("edgetun", "compile", "-f", str(written(tmp_path, "http://localhost:1")), "-o", str(out)).ended() == 0
    given = [str(out) if word == "SNAPSHOT" else word for word in flags]
    ports = ("--http-port", "0", "--https-port", "0", "--tunnel-port", "-1", "--listen", "127.0.0.1")
    with Command("edgetun-exitnode", "--state", str(tmp_path), *ports, *given) as node:
        assert node.ended(8) == ExitCode.USAGE
        assert says in node.err
        assert "Traceback" not in node.err


def test_the_manifests_of_the_readme_are_right(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    assert blocks
    for block in blocks:
        manifest = tmp_path / "tunnel.yaml"
        manifest.write_text(block)
        assert run("edgetun", "validate", "-f", str(manifest)).said.endswith("all is well\n")
