"""edgetun's container image without a builder: what the Dockerfile's last stage says, over a Python root from Debian packages.

Two layers, each cached by the hash of all that goes into it, outside the clone (`~/.cache/edgetun-kube/built`): Python and the
dependencies (minutes, when the dependencies change), and the project's wheel (seconds, when the code changes).
"""

from __future__ import annotations

import configparser
import fcntl
import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from support.kube_binaries import KUBE, cache_folder

REPOSITORY = "registry.test/edgetun"
PROJECT = KUBE.parent.parent
LIBRARY = "usr/local/lib/python3.11/dist-packages"
STANDARD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SOURCES = ("core", "operator", "exitnode", "agent", "standalone")
KEPT = 4  # of each kind of layer and image, in the cache

Build = Callable[[Path], None]


class ImageError(Exception):
    """The image could not be made; says which step and why."""


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What the last stage of a Dockerfile tells the container runtime."""

    user: str = ""
    workdir: str = "/"
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)


def read_dockerfile(text: str) -> ImageConfig:
    """The configuration of the last stage. Its files are not read from here: see `build_image`."""
    user, workdir, env = "", "/", {"PATH": STANDARD_PATH}
    lists: dict[str, tuple[str, ...]] = {"ENTRYPOINT": (), "CMD": ()}
    arguments: dict[str, str] = {}
    joined = re.sub(r"\\[ \t]*\n", " ", re.sub(r"(?m)^[ \t]*#.*\n", "", text))
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        word, rest = word.upper(), rest.strip()
        if word == "FROM":
            user, workdir, env, lists = "", "/", {"PATH": STANDARD_PATH}, {"ENTRYPOINT": (), "CMD": ()}
        elif word == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value.strip("\"'")
        elif word == "USER":
            user = _expand(rest, arguments | env)
        elif word == "WORKDIR":
            workdir = _expand(rest, arguments | env)
        elif word == "ENV":
            for name, value in _pairs(rest):
                env[name] = _expand(value, arguments | env)
        elif word in lists:
            lists[word] = tuple(json.loads(rest)) if rest.startswith("[") else ("/bin/sh", "-c", rest)
    return ImageConfig(user, workdir, lists["ENTRYPOINT"], lists["CMD"], env)


def _pairs(text: str) -> Iterable[tuple[str, str]]:
    if "=" not in text.split(" ")[0]:  # the old form: ENV NAME the value
        name, _, value = text.partition(" ")
        return [(name, value)]
    return [(name, value) for name, _, value in (word.partition("=") for word in shlex.split(text))]


def _expand(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda m: values.get(m[1] or m[2], ""), text.strip("\"'"))


def build_image(dockerfile: Path = PROJECT / "Dockerfile", project: Path = PROJECT) -> tuple[str, Path]:
    """(name, docker-archive) of the project as it stands in `project`. Raises ImageError."""
    if not dockerfile.exists():
        raise ImageError(f"there is no {dockerfile}")
    config = read_dockerfile(dockerfile.read_text())
    if not re.fullmatch(r"[1-9][0-9]*(:[0-9]+)?", config.user):
        raise ImageError(
            f"{dockerfile}: the last stage's USER is {config.user!r}; the kubelet can only check runAsNonRoot for a number"
        )
    cache = cache_folder() / "built"
    cache.mkdir(parents=True, exist_ok=True)
    tools = [KUBE / "mkimage.py", KUBE / "mkpyroot.sh", Path(__file__)]
    requirements = tomllib.loads((project / "pyproject.toml").read_text())["project"]["dependencies"]
    base_key = _hash(tools, json.dumps([sorted(requirements), sys.version]))
    sources = [p for folder in SOURCES for p in sorted((project / folder).rglob("*")) if _is_source(p)]
    key = _hash([*sources, project / "pyproject.toml", dockerfile], base_key)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        base = _cached(cache, "base", base_key, lambda out: _build_base(out, requirements))
        image = _cached(cache, "edgetun", key, lambda out: _build_top(out, project, config, base, key))
    return f"{REPOSITORY}:{key}", image


def _is_source(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"


def _hash(files: Iterable[Path], more: str) -> str:
    total = hashlib.sha256(more.encode())
    for file in files:
        total.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()[:16]


def _cached(cache: Path, kind: str, key: str, build: Build) -> Path:
    out = cache / f"{kind}-{key}.tar"
    if not out.exists():
        part = cache / f"{kind}-{key}.part"
        try:
            build(part)
            part.rename(out)
        finally:
            part.unlink(missing_ok=True)
    out.touch()
    for old in sorted(cache.glob(f"{kind}-*.tar"), key=lambda p: p.stat().st_mtime)[:-KEPT]:
        old.unlink()
    return out


def _run(step: str, *command: object, deadline_s: float = 600) -> None:
    ran = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=deadline_s,
    )
    if ran.returncode:
        raise ImageError(f"{step} failed with status {ran.returncode}:\n{ran.stdout[-3000:]}")


def _build_base(out: Path, requirements: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="edgetun-image-") as folder:
        root = Path(folder, "root")
        root.mkdir(mode=0o755)
        _run("the Python root and the dependencies", "bash", KUBE / "mkpyroot.sh", root, *requirements)
        shutil.rmtree(
            root / LIBRARY / "bin", ignore_errors=True
        )  # scripts with this machine's Python in their first line
        _run(
            "the layer of dependencies", sys.executable, KUBE / "mkimage.py", "--only-layer", out, "-", "-", f"{root}=/"
        )


def _build_top(out: Path, project: Path, config: ImageConfig, base: Path, key: str) -> None:
    with tempfile.TemporaryDirectory(prefix="edgetun-image-") as folder:
        root, wheels = Path(folder, "root"), Path(folder, "wheels")
        library, scripts = root / LIBRARY, root / "usr/local/bin"
        scripts.mkdir(parents=True)
        pip = (sys.executable, "-m", "pip", "-q", "--disable-pip-version-check")
        _run("the wheel", *pip, "wheel", "--no-deps", "-w", wheels, project)
        _run(
            "unpacking the wheel",
            *pip,
            "install",
            "--no-deps",
            "--no-compile",
            "--target",
            library,
            *wheels.glob("*.whl"),
        )
        shutil.rmtree(library / "bin", ignore_errors=True)
        _write_scripts(library, scripts)
        compiler = (sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash")
        _run("the bytecode", *compiler, "-s", root, library)
        for place in config.env["PATH"].split(":"):
            if place not in STANDARD_PATH.split(":") and not (root / place.lstrip("/")).exists():
                # where the Dockerfile keeps its programs, ours are too
                (root / place.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
                (root / place.lstrip("/")).symlink_to("/usr/local/bin")
        (root / config.workdir.lstrip("/")).mkdir(parents=True, exist_ok=True)
        user = config.user.split(":")[0]
        (root / "etc").mkdir()
        (root / "etc/passwd").write_text(
            f"root:x:0:0:root:/root:/bin/sh\nedgetun:x:{user}:{user}:edgetun:/tmp:/bin/sh\n"
        )
        for path in root.rglob("*"):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.parent == scripts else 0o644)
        root.chmod(0o755)
        options = [f"--env={name}={value}" for name, value in config.env.items()]
        options += [f"--user={config.user}", f"--workdir={config.workdir}", f"--cmd={shlex.join(config.cmd)}"]
        command = (sys.executable, KUBE / "mkimage.py", "--layer", base, *options)
        _run("the image", *command, out, f"{REPOSITORY}:{key}", shlex.join(config.entrypoint), f"{root}=/")


def _write_scripts(library: Path, scripts: Path) -> None:
    found = list(library.glob("edgetun-*.dist-info/entry_points.txt"))
    if len(found) != 1:
        raise ImageError(f"the wheel has {len(found)} entry_points.txt, expected one")
    parser = configparser.ConfigParser()
    parser.read(found[0])
    for name, target in parser["console_scripts"].items():
        module, _, function = target.partition(":")
        (scripts / name).write_text(
            f"#!/usr/bin/python3.11\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
        )
