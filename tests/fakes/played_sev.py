"""A secure processor at the ioctl of /dev/sev: it answers where the caller's command points.

Held against Linux, include/uapi/linux/psp-sev.h (`sev_issue_cmd`, `sev_user_data_snp_status`,
`sev_user_data_get_id2`) and drivers/crypto/ccp/sev-dev.c (`sev_ioctl_do_get_id2`: the length
comes back also when the firmware refuses, which is told as EIO with its error in the command).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Any

from agent.attestation.snp_tcb import Product
from tests.fakes.snp_chain import tcb_bytes

_COMMAND, _GET_ID = struct.Struct("<IQI"), struct.Struct("<QI")
_INVALID_LENGTH = 4


class PlayedSev:
    """`ids`: what GET_ID gives, all sockets together. `refuses`: the error that it fails with."""

    def __init__(self, ids: bytes = b"", refuses: int = 0, **fields: Any) -> None:
        tcb = tcb_bytes(Product.MILAN)
        values = {"flags": 0, "current": tcb, "reported": tcb, "minor": 55, "memory": 1} | fields
        self.ids = ids
        self.refuses = refuses
        self.asked = 0
        self.answer = struct.pack(
            "<BBBBIII8s8s",
            *(1, values["minor"], 1, values["memory"], 21, values["flags"], 0),
            *(values["current"], values["reported"]),
        )

    def __call__(self, descriptor: int, request: int, command: bytearray) -> None:
        number, address, _ = _COMMAND.unpack(command)
        assert request == 0xC0105300
        match number:
            case 9:
                ctypes.memmove(address, self.answer, len(self.answer))
            case 8:
                self._get_id(address, command)
            case _:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def _get_id(self, address: int, command: bytearray) -> None:
        self.asked += 1
        where, room = _GET_ID.unpack(ctypes.string_at(address, _GET_ID.size))
        length = len(self.ids)
        ctypes.memmove(address, _GET_ID.pack(where, length), _GET_ID.size)
        error = self.refuses or (_INVALID_LENGTH if room < length else 0)
        if error:
            _COMMAND.pack_into(command, 0, 8, address, error)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        ctypes.memmove(where, self.ids, length)
