"""One bill of materials out of two: what is locked for the agent, as this environment knows it.

    python -m scripts.sbom OUT

The locked file tells by which hashes each of them is taken; this environment, which has them and
what developers need besides, their licences and who needs whom. CycloneDX 1.6 (ECMA-424), by its
own tool; the same bytes for the same environment.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
TOOL = (sys.executable, "-m", "cyclonedx_py")


def bill(kind: str, source: Path) -> dict[str, Any]:
    """What the tool makes of an environment, or of a file of requirements."""
    project = ("--pyproject", CHECKOUT / "pyproject.toml", "--mc-type", "application")
    options = ("--output-reproducible", "--of", "JSON", "--sv", "1.6", "--no-validate")
    made = subprocess.run(
        [*TOOL, kind, *project, *options, source], check=True, capture_output=True
    )
    found: dict[str, Any] = json.loads(made.stdout)
    return found


def plain(name: str) -> str:
    """A distribution's name as they are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def joined(environment: dict[str, Any], locked: dict[str, Any]) -> dict[str, Any]:
    """The locked of the environment's bill, with hashes. Raises ValueError at a difference."""
    known = {plain(one["name"]): one for one in locked["components"]}
    components = [one for one in environment["components"] if plain(one["name"]) in known]
    for one in components:
        lock = known[plain(one["name"])]
        if one["version"] != lock["version"]:
            told = f"{one['name']} {lock['version']} is locked, {one['version']} is installed"
            raise ValueError(f"{told}: mend .venv")
        one["externalReferences"] = [
            *one.get("externalReferences", ()),
            *lock["externalReferences"],
        ]
    root = environment["metadata"]["component"]["bom-ref"]
    refs = {root, *(one["bom-ref"] for one in components)}
    needs = [
        {**one, "dependsOn": [ref for ref in one.get("dependsOn", ()) if ref in refs]}
        for one in environment["dependencies"]
        if one["ref"] in refs
    ]
    return {**environment, "components": components, "dependencies": needs}


def main(out: str) -> None:
    whole = joined(
        bill("environment", Path(sys.executable)),
        bill("requirements", CHECKOUT / "requirements" / "agent.txt"),
    )
    Path(out).write_text(json.dumps(whole, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
