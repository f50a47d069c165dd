"""Handlers of images: what is kept of releases, and its removal."""

from __future__ import annotations

from collections.abc import Sequence

from agent.api.reply import Reply, json_reply
from agent.api.route import Call
from agent.releases.port import KeptImage
from agent.wire.answers import Image, Images


async def kept(call: Call) -> Reply:
    return json_reply(_answer(await call.surface.engine.images()))


async def prune(call: Call) -> Reply:
    unused_for_s = call.body.unused_for_s
    return json_reply(_answer(await call.surface.engine.prune_images(unused_for_s)))


def _answer(images: Sequence[KeptImage]) -> Images:
    return Images(
        images=[
            Image(key=one.key, bytes=one.bytes, used_at=one.used_at, needed=one.needed)
            for one in images
        ]
    )
