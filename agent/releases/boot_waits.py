"""What a workload config says of how long its guest may boot: health checks and certificate.

The guest's boot is over when each container with a health check was found healthy, or not. Docker
finds it unhealthy after `retries` failures in a row, one an `interval`, that begin to count when
the start period is over; absent or 0 they are Docker's own defaults.
"""

from __future__ import annotations

from agent.releases.duration import parse_duration
from agent.releases.fields import Field

_INTERVAL_S, _RETRIES = 30.0, 3  # Docker's, where the config names none
_MAX_RETRIES = 10_000
_TLS_MODE = "cert-proxy"  # the guest's own default


def start_period_s(container: Field) -> float:
    """Its start period; 0 without one. Raises ReleaseFieldError."""
    check = container.optional("healthcheck")
    return _duration_s(check, "start_period") if check else 0.0


def healthy_within_s(container: Field) -> float:
    """By when it was found healthy or unhealthy, from its start on; 0 without a health check."""
    check = container.optional("healthcheck")
    if check is None:
        return 0.0
    retries = check.optional("retries")
    times = retries.integer(0, _MAX_RETRIES) if retries else 0
    interval_s = _duration_s(check, "interval") or _INTERVAL_S
    return start_period_s(container) + (times or _RETRIES) * interval_s


def tls_mode(root: Field) -> str:
    """Where the guest's certificate comes from: `self-signed`, `cert-proxy`, `acme`."""
    shim = root.optional("shim")
    mode = shim.optional("tls-mode") if shim else None
    return mode.text() if mode else _TLS_MODE


def _duration_s(check: Field, name: str) -> float:
    field = check.optional(name)
    if field is None:
        return 0.0
    try:
        return parse_duration(field.value)
    except ValueError as error:
        raise field.error(str(error)) from None
