"""Generate the Python modules from `themis.proto`: `python plugins/grpc_transport/generate.py`.

Needs `grpcio-tools`, in the version below: what it generates runs with that version of grpcio and
protobuf and all newer ones, so it is the lower bound of the package's dependencies.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

LOWEST = "1.76.0"
SOURCE = Path(__file__).parent / "src"
PROTO = "themis_grpc_transport/v1/themis.proto"


def main() -> int:
    """Returns the exit code."""
    from grpc_tools import _proto, protoc

    if version("grpcio-tools") != LOWEST:
        sys.stderr.write(f"Install grpcio-tools=={LOWEST} (in an environment of its own).\n")
        return 1
    include = Path(_proto.__path__[0])
    arguments = [f"-I{SOURCE}", f"-I{include}"]
    arguments += [f"--{kind}={SOURCE}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    code: int = protoc.main(["protoc", *arguments, PROTO])
    return code


if __name__ == "__main__":
    sys.exit(main())
