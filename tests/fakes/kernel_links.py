"""All that a network could have changed in the kernel, to be compared."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.fakes.netns import ip


def kernel() -> dict[str, object]:
    """Everything that a network could have changed, but for counters and indexes."""
    links = json.loads(ip("-j -d link show"))
    switches = {
        str(path): path.read_text()
        for name in ("ipv4", "ipv6")
        for path in Path(f"/proc/sys/net/{name}").glob("**/*")
        if path.is_file() and os.access(path, os.R_OK) and not path.name.startswith("stable")
    }
    return {
        "links": {
            row["ifname"]: (
                row.get("ifalias"),
                row.get("master"),
                row["flags"],
                row["txqlen"],
                row["linkinfo"]["info_kind"] if "linkinfo" in row else None,
                row.get("linkinfo", {}).get("info_slave_data", {}).get("isolated"),
            )
            for row in links
        },
        "addresses": [
            (row["ifname"], inet["local"], inet["prefixlen"])
            for row in json.loads(ip("-j addr show scope global"))
            for inet in row.get("addr_info", ())
            if inet
        ],
        "routes": ip("-4 route show table all"),
        "neighbours": ip("neigh show nud permanent"),
        "filters": {
            row["ifname"]: [
                subprocess.run(
                    ["tc", "filter", "show", "dev", row["ifname"], hook],
                    check=False,  # a link without any says so by its status
                    capture_output=True,
                ).stdout
                for hook in ("ingress", "egress")
            ]
            for row in links
        },
        "switches": switches,
    }
