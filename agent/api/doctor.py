"""The handler of the doctor: what the agent says of its host, with its own rights."""

from __future__ import annotations

from agent.api.reply import Reply, json_reply
from agent.api.route import Call


async def look(call: Call) -> Reply:
    return json_reply(await call.surface.doctor())
