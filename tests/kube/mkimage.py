#!/usr/bin/env python3
"""Makes a docker-archive for `ctr images import`, without a builder.

    mkimage.py OUT.tar NAME:TAG ENTRYPOINT SRC=DST...

SRC is a file or a folder (a whole root: SRC=/), ENTRYPOINT is split on spaces. The same input gives the same bytes.
`--layer FILE.tar` puts a layer beneath that `mkimage.py --only-layer FILE.tar - - SRC=DST...` made before.
"""

import argparse
import hashlib
import io
import json
import shlex
import tarfile
from pathlib import Path


def owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """As a builder would have made it: who builds, and when, must not show."""
    member.mtime = member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def write_layer(path: Path, pairs: list[str]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as layer:
        for pair in pairs:
            source, _, target = pair.partition("=")
            layer.add(source, target.lstrip("/") or ".", filter=owned_by_root)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_image(out: Path, name: str, config: dict[str, object], layers: list[Path]) -> None:
    described = {
        "architecture": "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + sha256(layer) for layer in layers]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "mkimage.py"} for _ in layers],
    }
    text = json.dumps(described, sort_keys=True).encode()
    config_name = hashlib.sha256(text).hexdigest() + ".json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [f"{i}.tar" for i in range(len(layers))]}]
    with tarfile.open(out, "w") as image:
        for entry, data in ((config_name, text), ("manifest.json", json.dumps(manifest).encode())):
            member = tarfile.TarInfo(entry)
            member.size, member.mode = len(data), 0o644
            image.addfile(member, io.BytesIO(data))
        for i, layer in enumerate(layers):
            image.add(layer, f"{i}.tar", filter=owned_by_root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", action="append", default=[], type=Path, metavar="FILE.tar")
    parser.add_argument("--only-layer", action="store_true", help="OUT is a layer, not an image")
    parser.add_argument("--user", default="")
    parser.add_argument("--workdir", default="/")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--cmd", default="", help="split on spaces")
    parser.add_argument("out", type=Path)
    parser.add_argument("name")
    parser.add_argument("entrypoint")
    parser.add_argument("pairs", nargs="+", metavar="SRC=DST")
    args = parser.parse_args()
    if args.only_layer:
        return write_layer(args.out, args.pairs)
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    config: dict[str, object] = {
        "Entrypoint": shlex.split(args.entrypoint),
        "Cmd": shlex.split(args.cmd),
        "Env": args.env if any(pair.startswith("PATH=") for pair in args.env) else [path, *args.env],
        "WorkingDir": args.workdir,
        "User": args.user,
    }
    top = args.out.with_name(args.out.name + ".layer")
    try:
        write_layer(top, args.pairs)
        write_image(args.out, args.name, config, [*args.layer, top])
    finally:
        top.unlink(missing_ok=True)


main()
