"""Generate the messages of the gRPC door: `python plugins/vllm_remote/generate.py`.

Needs `grpcio-tools`, in the version below: what it generates runs with the protobuf of that version
and all newer ones, so it sets the lower bound of the extra `grpc`.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

LOWEST = "1.76.0"
SOURCE = Path(__file__).parent / "src"
PROTO = "themis_vllm_remote/grpc/vllm.proto"


def main() -> int:
    """Returns the exit code."""
    from grpc_tools import protoc

    if version("grpcio-tools") != LOWEST:
        sys.stderr.write(f"Install grpcio-tools=={LOWEST} (in an environment of its own).\n")
        return 1
    arguments = [f"--{kind}={SOURCE}" for kind in ("python_out", "pyi_out")]
    code: int = protoc.main(["protoc", f"-I{SOURCE}", *arguments, PROTO])
    return code


if __name__ == "__main__":
    sys.exit(main())
