"""What failed, told once: in its own words, what still serves, what to type next, its console."""

from __future__ import annotations

from agent.wire.views import FaultView, UpdateView


def headline(update: UpdateView) -> str:
    """`web: update to v1.1.0 failed in verify`."""
    step = (update.error.step if update.error else None) or update.step
    return f"{update.deployment}: update to {update.tag} failed in {step}"


def words(fault: FaultView) -> str:
    """The code, and what the thing that failed said; a probe's answer by the probe's name."""
    detail, response = fault.detail or "", fault.response or ""
    parts = [detail] if detail else []
    if response and response not in detail:
        parts.append(response)
    elif response and response == detail and fault.probe:
        parts = [f"{fault.probe}: {detail}"]
    if fault.probe and not any(fault.probe in part for part in parts):
        parts[-1:] = [f"{parts[-1]} ({fault.probe})"] if parts else [fault.probe]
    return f"{fault.code}: {'; '.join(parts)}" if parts else fault.code


def what_is_left(update: UpdateView) -> list[str]:
    """What serves, and the next steps in one column."""
    lines = [update.serves] if update.serves else []
    width = max((len(one.command) for one in update.next_steps), default=0)
    for n, one in enumerate(update.next_steps):
        lines.append(f"{'      ' if n else 'next: '}{one.command:<{width}}  {one.why}")
    return lines
