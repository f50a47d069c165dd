"""Tables that can be copied: identifiers whole or not at all, a row a line, at every width."""

from __future__ import annotations

import io
import os
import pty
import re

import msgspec
import pytest
from rich.text import Text

from agent.cli.client import Client, reason_text
from agent.cli.options import Output
from agent.cli.overview import deployments_table
from agent.cli.screen import pairs, plain, show_json, table
from agent.cli.tables import Column, Look, Screen, prose
from agent.cli.text import escaped_json
from agent.model.gpu import GpuState
from agent.model.reasons import ReasonCode
from agent.wire.answers import Deployments
from agent.wire.views import ReasonView
from tests.fakes.gpus import gpu, inventory

BDFS = [f"0000:{n:02x}:00.0" for n in range(0x18, 0x20)]


def drawn(drawing: object, width: int, look: Look | None = None) -> list[str]:
    """Lines of a terminal of that width."""
    out = io.StringIO()
    console = Screen(file=out, width=width, color_system=None)
    console.look = look or Look(width=width)
    console.print(drawing, crop=False, overflow="ignore")
    return out.getvalue().splitlines()


def eight():
    rows = table(
        Column("DEPLOYMENT"),
        Column("TAG", 1),
        Column("SLOT", 4),
        Column("LISTEN", 2),
        Column("UPDATE", 3),
        prose("WHY", 5),
        Column("UNIT", wide=True),
    )
    for n in range(8):
        rows.add_row(
            f"deployment-{n}",
            f"v1.{n}.0-rc.1+build",
            "green",
            f"[2001:db8:0:{n}::1]:844{n}",
            (f"v1.{n}.0 -> v1.{n}.1 started, boot {n} %", "started, boot", "started"),
            "there is a reason for that, and it is told in a sentence",
            f"enclave-{n}.service",
        )
    return rows


@pytest.mark.parametrize("width", range(20, 200, 6))
def test_a_word_is_whole_or_absent_at_every_width(width: int) -> None:
    known = {*" ".join(drawn(eight(), 10_000)).split(), "started"}
    lines = drawn(eight(), width)
    assert set(" ".join(lines).split()) <= known
    assert sum(line.startswith("deployment-") for line in lines) == 8
    if width > 40:
        assert max(map(len, lines)) <= width


def test_the_least_needed_goes_first_by_its_shorter_form() -> None:
    header = [drawn(eight(), width)[0].split() for width in (300, 120, 88, 60, 45)]
    assert header[0] == ["DEPLOYMENT", "TAG", "SLOT", "LISTEN", "UPDATE", "WHY"]
    assert header[1] == ["DEPLOYMENT", "TAG", "SLOT", "LISTEN", "UPDATE"]
    assert header[2] == ["DEPLOYMENT", "TAG", "LISTEN", "UPDATE"]
    assert header[3] == ["DEPLOYMENT", "TAG", "LISTEN"]
    assert header[4] == ["DEPLOYMENT", "TAG"]
    assert "v1.3.0 -> " not in "\n".join(drawn(eight(), 88))
    assert "started, boot" in drawn(eight(), 88)[4]


def test_a_sentence_wraps_between_words_under_its_own_column() -> None:
    rows = table(Column("CHECK"), prose("DETAIL"))
    digest = "a" * 64
    rows.add_row("one", f"the digest is {digest} and not another one")
    lines = drawn(rows, 40)
    assert lines[:3] == ["CHECK  DETAIL", "one    the digest is", f"       {digest}"]
    assert lines[3] == "       and not another one"


@pytest.mark.parametrize("look", [Look(), Look(wide=True, width=40)])
def test_pipes_and_wide_have_all_of_a_row_on_one_line(look: Look) -> None:
    lines = drawn(eight(), 40, look)
    assert len(lines) == 9
    assert all("and it is told in a sentence" in line for line in lines[1:])
    assert ("UNIT" in lines[0]) is look.wide


def test_headers_can_be_left_out() -> None:
    assert drawn(eight(), 80, Look(headers=False, width=80)) == drawn(eight(), 80)[1:]


def test_pairs_wrap_between_words_and_what_is_copied_as_one_never() -> None:
    shown = pairs()
    shown.add_row("gpus", ", ".join(BDFS))
    shown.add_row("variable", "GREETING=hello to all of you who read this line", whole=True)
    lines = drawn(shown, 40)
    assert all(bdf in "\n".join(lines) for bdf in BDFS)
    assert "variable  GREETING=hello to all of you who read this line" in lines
    assert max(len(line) for line in lines[:-1]) <= 40


def test_a_table_in_colour_measures_what_is_seen() -> None:
    rows = table(Column("NAME"), Column("STATE"))
    rows.add_row(Text("naïve-✓", style="bold"), Text("ok", style="green"))
    assert drawn(rows, 80) == ["NAME     STATE", "naïve-✓  ok"]


def deployments(agent) -> list:
    for n in range(8):
        agent.running(f"a-name-of-some-length-{n}", port=9000 + n)
    return Client(agent.api.path).read("/v1/deployments", Deployments).deployments


@pytest.mark.parametrize("width", [80, 100, 132])
def test_eight_deployments_are_eight_rows_with_their_ports(agent, width: int) -> None:
    lines = drawn(deployments_table(deployments(agent)), width)
    assert len(lines) == 9
    for n, line in enumerate(lines[1:]):
        assert line.split()[0] == f"a-name-of-some-length-{n}"
        assert f"127.0.0.1:900{n}" in line.split()
        assert len(line) <= width


def on_a_terminal(agent, *arguments: str, columns: int = 80) -> str:
    ours, theirs = pty.openpty()
    environ = {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "40"}
    with agent.popen(*arguments, terminal=theirs, environ=environ) as process:
        os.close(theirs)
        seen = b""
        try:
            while piece := os.read(ours, 65536):
                seen += piece
        except OSError:  # a terminal whose other end is closed reads as an error
            pass
        process.stderr.close()
        assert process.wait(60) == 0
    os.close(ours)
    return re.sub(r"\x1b\[[\d;]*m", "", seen.decode())


def test_on_a_terminal_of_80_columns_gpus_are_whole(agent) -> None:
    def put(engine) -> None:
        cards = [gpu(one, name="NVIDIA H100 80GB HBM3", state=GpuState.FREE) for one in BDFS]
        engine.gpus.inventory = inventory(*cards)
        engine.publish()

    agent.api.do(put)
    lines = on_a_terminal(agent, "gpus").split("\r\n")
    assert [line.split()[0] for line in lines[1:9]] == BDFS
    assert max(map(len, lines)) <= 80
    wide = on_a_terminal(agent, "gpus", "-o", "wide", "--no-headers").split("\r\n")
    assert [line.split()[0] for line in wide[:8]] == BDFS


def test_lines_of_json_are_a_value_each(agent) -> None:
    agent.running("one")
    agent.running("two", port=9000)
    for arguments, key, wanted in (
        (("status",), "name", ["one", "two"]),
        (("status", "two"), "name", ["two"]),
        (("capacity",), "resource", ["gpus", "memory_mib", "vcpus", "tee_ids"]),
        (("update", "list", "one"), "tag", ["v1.0.0"]),
    ):
        result = agent.call(*arguments, "-o", "jsonl")
        assert result.exit_code == 0, result.output
        rows = [msgspec.json.decode(line) for line in result.stdout.splitlines()]
        assert [row[key] for row in rows][: len(wanted)] == wanted


@pytest.mark.parametrize(
    ("detail", "told"),
    [
        ("8 GPUs needed, 2 free", "memory_insufficient: 8 GPUs needed, 2 free"),
        ("too little", "memory_insufficient: too little (needed 8, available 2)"),
        ("8 are needed", "memory_insufficient: 8 are needed (available 2)"),
        ("v2.8.1 needs 18 of 0000:28:00.0", None),
    ],
)
def test_a_refusal_says_its_numbers_once(detail: str, told: str | None) -> None:
    code = ReasonCode.MEMORY_INSUFFICIENT
    reason = ReasonView(code=code, detail=detail, needed=8, available=2)
    both = f"{code}: {detail} (needed 8, available 2)"
    assert reason_text(reason) == (told or both)


def test_json_steers_no_terminal_and_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    said = "a\x1b[2J\x7f\x9b31m\u202e\U000e0001é\n"
    show_json({"said": said})
    out = capsys.readouterr().out
    assert msgspec.json.decode(out) == {"said": said}
    assert all(c.isprintable() or c == "\n" for c in out)
    assert escaped_json('{"a": "é"}') == '{"a": "é"}'


def test_what_is_no_terminal_has_no_line_broken() -> None:
    rows = table(Column("NAME"), prose("WHY"))
    rows.add_row("x" * 600, "word " * 400)
    assert len(plain(rows, Output()).splitlines()) == 2
