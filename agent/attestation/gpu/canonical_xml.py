"""XML read strictly, and written in its canonical form (Canonical XML 1.0 and 1.1). Pure.

A signature over XML is over its canonical bytes. Here is what signed manifests need of that, and
no more: UTF-8, elements, attributes and text. A document type, entities of its own, processing
instructions, comments, CDATA sections and attributes of the namespace `xml` are refused. Without
the last ones versions 1.0 and 1.1 write the same bytes, also for a part of a document.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from xml.parsers import expat

from agent.attestation.evidence import EvidenceError

MAX_BYTES = 128 << 10
_MAX_DEPTH = 16
_MAX_ELEMENTS = 4096
_XML = "http://www.w3.org/XML/1998/namespace"
_TEXT = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#xD;"})
_VALUE = str.maketrans(
    {"&": "&amp;", "<": "&lt;", '"': "&quot;", "\t": "&#x9;", "\n": "&#xA;", "\r": "&#xD;"}
)


@dataclass(frozen=True, slots=True)
class Attribute:
    """`name`: with its prefix, as written. `space`: its namespace; empty without a prefix."""

    name: str
    space: str
    local: str
    value: str


@dataclass(frozen=True, slots=True)
class Element:
    """`scope`: every namespace in force here, by prefix (empty: the default one)."""

    name: str
    space: str
    local: str
    attributes: tuple[Attribute, ...]
    scope: Mapping[str, str]
    children: list[Element | str] = field(default_factory=list)

    @property
    def elements(self) -> list[Element]:
        """The elements right under it."""
        return [child for child in self.children if isinstance(child, Element)]

    @property
    def text(self) -> str:
        """The text right under it."""
        return "".join(child for child in self.children if isinstance(child, str))

    def get(self, local: str, space: str = "") -> str | None:
        """An attribute's value; None where it has none of that name."""
        for one in self.attributes:
            if (one.space, one.local) == (space, local):
                return one.value
        return None

    def walk(self) -> Iterator[Element]:
        """It and everything below it."""
        yield self
        for child in self.elements:
            yield from child.walk()


def read_xml(data: bytes, code: str) -> Element:
    """The document's element. Raises EvidenceError with this code for what is not read here."""
    if len(data) > MAX_BYTES:
        raise EvidenceError(code, f"it has more than {MAX_BYTES} bytes of XML")
    return _Reader(code).read(data)


def canonical(element: Element, without: Element | None = None) -> bytes:
    """The canonical bytes of an element and what is below it, except for one element of those."""
    return "".join(_written(element, {}, without)).encode()


def _written(
    element: Element, rendered: Mapping[str, str], without: Element | None
) -> Iterator[str]:
    new = {prefix: uri for prefix, uri in element.scope.items() if rendered.get(prefix, "") != uri}
    yield f"<{element.name}"
    for prefix, uri in sorted(new.items()):
        yield f' {f"xmlns:{prefix}" if prefix else "xmlns"}="{uri.translate(_VALUE)}"'
    for one in sorted(element.attributes, key=lambda one: (one.space, one.local)):
        yield f' {one.name}="{one.value.translate(_VALUE)}"'
    yield ">"
    for child in element.children:
        if isinstance(child, str):
            yield child.translate(_TEXT)
        elif child is not without:
            yield from _written(child, {**rendered, **new}, without)
    yield f"</{element.name}>"


class _Reader:
    """One reading by expat, which calls the methods below."""

    def __init__(self, code: str) -> None:
        self._code = code
        self._open: list[Element] = []
        self._root: Element | None = None
        self._count = 0

    def read(self, data: bytes) -> Element:
        parser = expat.ParserCreate(encoding="utf-8")
        parser.ordered_attributes = True
        parser.buffer_text = True
        parser.XmlDeclHandler = self._declaration
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._characters
        parser.StartDoctypeDeclHandler = self._no_doctype
        parser.ProcessingInstructionHandler = self._no_instruction
        parser.CommentHandler = self._no_comment
        parser.StartCdataSectionHandler = self._no_cdata
        try:
            # Expat takes UTF-16 by its first bytes, whatever it is told; no XML has a zero byte.
            if "\0" in data.decode("utf-8"):
                raise self._refusal("it is not in UTF-8")
            parser.Parse(data, True)
        except (expat.ExpatError, ValueError) as error:
            raise self._refusal(f"not well-formed XML: {error}") from error
        if self._root is None:
            raise self._refusal("there is no element")
        return self._root

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        del standalone
        if version != "1.0" or (encoding or "utf-8").lower() != "utf-8":
            raise self._refusal(f"it is XML {version} in {encoding}, not 1.0 in UTF-8")

    def _start(self, name: str, given: list[str]) -> None:
        self._count += 1
        if self._count > _MAX_ELEMENTS or len(self._open) >= _MAX_DEPTH:
            raise self._refusal(f"over {_MAX_ELEMENTS} elements, or deeper than {_MAX_DEPTH}")
        pairs = list(zip(given[::2], given[1::2], strict=True))
        scope = self._scope([pair for pair in pairs if _declares(pair[0])])
        attributes = tuple(
            self._attribute(key, value, scope) for key, value in pairs if not _declares(key)
        )
        if len({(one.space, one.local) for one in attributes}) != len(attributes):
            raise self._refusal(f"{name} has an attribute twice")
        space, local = self._resolved(name, scope, scope.get("", ""))
        element = Element(name, space, local, attributes, scope)
        if self._open:
            self._open[-1].children.append(element)
        else:
            self._root = element
        self._open.append(element)

    def _end(self, name: str) -> None:
        del name
        self._open.pop()

    def _characters(self, text: str) -> None:
        self._open[-1].children.append(text)

    def _scope(self, declared: list[tuple[str, str]]) -> dict[str, str]:
        scope = dict(self._open[-1].scope) if self._open else {}
        for name, uri in declared:
            prefix = name.partition(":")[2]
            if prefix in {"xml", "xmlns"} or (prefix and not uri):
                raise self._refusal(f"{name} cannot be declared as {uri!r}")
            scope[prefix] = uri
        return scope

    def _attribute(self, name: str, value: str, scope: Mapping[str, str]) -> Attribute:
        space, local = self._resolved(name, scope, "")
        return Attribute(name, space, local, value)

    def _resolved(self, name: str, scope: Mapping[str, str], default: str) -> tuple[str, str]:
        prefix, colon, local = name.rpartition(":")
        if not colon:
            return default, name
        if not prefix or prefix not in scope or not local or scope[prefix] == _XML:
            raise self._refusal(f"the prefix of {name} is not declared, or not read here")
        return scope[prefix], local

    def _no_doctype(self, *_: object) -> None:
        raise self._refusal("it has a document type")

    def _no_instruction(self, *_: object) -> None:
        raise self._refusal("it has a processing instruction")

    def _no_comment(self, *_: object) -> None:
        raise self._refusal("it has a comment")

    def _no_cdata(self, *_: object) -> None:
        raise self._refusal("it has a CDATA section")

    def _refusal(self, detail: str) -> EvidenceError:
        return EvidenceError(self._code, f"the XML of it is refused: {detail}"[:300])


def _declares(name: str) -> bool:
    return name == "xmlns" or name.startswith("xmlns:")
