"""Whether an image hears its power button: by its version, else by what its guests did. Pure.

An image that has no driver for it is asked in vain for the whole grace, while nobody is served. So
one press that a booted guest did not react to is remembered of its image version, durably, and
such an image is not asked again. Two things keep one odd guest from condemning a version:

- a version of which any guest was ever heard is deaf no more; of such a one only the deployment
  whose guest did not react is remembered, and a press of its own that is heard ends that;
- what was learned fades: after `RETRY_AFTER` the button is pressed again, and judged anew.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from enum import StrEnum

import msgspec

from agent.model.ids import DeploymentName

RETRY_AFTER = dt.timedelta(days=7)
NOT_ASKED = "ended without being asked: its image does not hear the power button"


class Press(StrEnum):
    """What came of a VM's power button when the VM was stopped."""

    NONE = "none"  # it was not pressed
    HEARD = "heard"  # the guest powered off
    IGNORED = "ignored"  # booted before it and after the whole grace, as if nothing had happened
    UNCLEAR = "unclear"  # it ended otherwise, did not answer, or the grace says too little


class ButtonRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was learned of one image version.

    `ignored_at`: when a guest of it ignored a press, unless one was ever `heard`. `ignoring`: the
    deployments whose guests did, and when last.
    """

    heard: bool = False
    ignored_at: dt.datetime | None = None
    ignoring: Mapping[DeploymentName, dt.datetime] = {}

    def is_deaf(self, deployment: DeploymentName, now: dt.datetime) -> bool:
        """Whether a guest of this deployment would be asked in vain, as far as is known."""
        times = (self.ignored_at, self.ignoring.get(deployment))
        return any(at is not None and now - at < RETRY_AFTER for at in times)

    def after(self, press: Press, deployment: DeploymentName, now: dt.datetime) -> ButtonRecord:
        """With what one more press taught."""
        others = {
            name: at
            for name, at in self.ignoring.items()
            if name != deployment and now - at < RETRY_AFTER
        }
        match press:
            case Press.HEARD:
                if self.heard and deployment not in self.ignoring:
                    return self
                return ButtonRecord(heard=True, ignoring=others)
            case Press.IGNORED:
                ignored_at = None if self.heard else now
                ignoring = others | {deployment: now}
                return ButtonRecord(heard=self.heard, ignored_at=ignored_at, ignoring=ignoring)
            case Press.NONE | Press.UNCLEAR:
                return self
