"""`edgetun compile -f tunnel.yaml -o region.snapshot`: what an exit node without a control plane obeys."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from edgetun.manifests import compile_files
from edgetun_core.errors import ConfigError
from edgetun_core.exits import ExitCode
from edgetun_core.settings import REQUIRED, setting
from edgetun_core.snapshot import encode_snapshot


@dataclass(frozen=True, slots=True)
class CompileSettings:
    """Compiles manifests into the snapshot of one region, for `edgetun-exitnode --snapshot`.

    It says what to serve. Whom to let in is control's to say: without its keys no agent can connect to such a node.
    """

    section: ClassVar[str] = "compile"

    file: tuple[str, ...] = setting(
        REQUIRED, "Manifest file or folder, or - for standard input.", short="-f", metavar="FILE"
    )
    output: Path = setting(REQUIRED, "Where to write the snapshot; replaced as a whole.", short="-o")
    pool: str = setting("", "ExitPool; default: the only one in the files, or a built-in one.")
    region: str = setting("", "Region of the pool; default: its first.")


def run(settings: CompileSettings) -> int:
    """Writes the snapshot; manifests with errors write nothing."""
    compiled = compile_files(settings.file, settings.pool, settings.region, version=time.time_ns() // 1_000_000)
    for line in compiled.lines:
        sys.stderr.write(f"{line}\n")
    if compiled.snapshot is None:
        return ExitCode.USAGE
    folder = settings.output.parent
    try:
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(encode_snapshot(compiled.snapshot))
        os.replace(file.name, settings.output)
    except OSError as error:
        raise ConfigError(f"--output {settings.output}: {error.strerror}", remedy="check the path") from error
    return ExitCode.OK
