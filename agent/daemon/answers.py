"""Kept answers of idempotent requests, in the store."""

from __future__ import annotations

from agent.store.port import KeptAnswer, Store


class StoredAnswers:
    """Implements `agent.api.idempotency.Answers`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, caller: str, method: str, path: str, key: str) -> KeptAnswer | None:
        return await self._store.read(lambda tx: tx.answer(caller, method, path, key))

    async def put(self, caller: str, method: str, path: str, key: str, answer: KeptAnswer) -> None:
        await self._store.transact(lambda tx: tx.put_answer(caller, method, path, key, answer))
