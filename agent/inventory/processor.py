"""The model of the host's processor, as the kernel names it."""

from __future__ import annotations

import re
from pathlib import Path

_MODEL = re.compile(r"^model name\s*:\s*(\S.*?)\s*$", re.MULTILINE)


def cpu_model(proc_root: Path = Path("/proc")) -> str:
    """Such as `AMD EPYC 9654 96-Core Processor`; empty where this kernel does not say."""
    try:
        text = (proc_root / "cpuinfo").read_text(errors="replace")
    except OSError:
        return ""
    found = _MODEL.search(text)
    return re.sub(r"\s+", " ", found[1]) if found else ""
