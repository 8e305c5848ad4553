"""Installing a small project as an installer does, RECORD and all; without network or tools."""

from __future__ import annotations

import base64
import hashlib
import tomllib
from pathlib import Path


def install_project(project: Path, site: Path) -> None:
    """The modules in `project/src`, and what its pyproject.toml says, go to `site`."""
    declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    modules = {path.name: path.read_text() for path in (project / "src").glob("*.py")}
    groups = declared.get("entry-points", {})
    write_distribution(
        site,
        declared["name"],
        declared["version"],
        modules,
        requires=declared.get("dependencies", []),
        groups=groups,
    )


def write_distribution(
    site: Path,
    name: str,
    version: str,
    files: dict[str, str],
    *,
    requires: list[str],
    groups: dict[str, dict[str, str]],
) -> Path:
    """Write files and metadata. Returns the `.dist-info` folder."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in requires]
    points = [
        "\n".join([f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())])
        for group, entries in groups.items()
    ]
    files = {
        **files,
        f"{info}/METADATA": "\n".join(metadata) + "\n",
        f"{info}/entry_points.txt": "\n".join(points) + "\n",
    }
    rows = [f"{info}/RECORD,,"]
    for path, text in files.items():
        (site / path).parent.mkdir(exist_ok=True)
        (site / path).write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
        rows.append(f"{path},sha256={digest.decode().rstrip('=')},{len(text)}")
    (site / info / "RECORD").write_text("\n".join(rows) + "\n")
    return site / info
