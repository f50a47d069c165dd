"""YAML read strictly: what comes out is what a reader of the file would expect, or an error.

One document, no aliases and no merge keys (so a small file cannot become a big value), no
duplicate keys, only the plain types of JSON, bounded size and depth. The value is built from
libyaml's events without recursion, so that no input exhausts the stack.
"""

from __future__ import annotations

import yaml

from agent.errors import AgentError

MAX_BYTES = 1 << 20
MAX_DEPTH = 32

_TAG = "tag:yaml.org,2002:"
_AS_TEXT = frozenset({"str", "timestamp", "value"})
_SCALARS = frozenset({"null", "bool", "int", "float"})
_NUMBERS = frozenset({"int", "float"})
_INTEGERS = range(-(2**63), 2**64)
_OPENING = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_CLOSING = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


class StrictYamlError(AgentError):
    """The text is not acceptable. `line` and `column` count from 1; 0 when there is no place."""

    def __init__(self, reason: str, line: int = 0, column: int = 0) -> None:
        super().__init__(f"line {line}, column {column}: {reason}" if line else reason)
        self.reason = reason
        self.line = line
        self.column = column

    @property
    def code(self) -> str:
        return "yaml_invalid"


def load_strict_yaml(
    data: bytes, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH
) -> object:
    """Read one YAML 1.1 document of None, bool, int, float, str, list and dict.

    Timestamps and numbers to the base of 60 (`22:22`) stay the text that they were written as; an
    integer has at most 64 bits. An empty file is None. Raises StrictYamlError at the first thing
    that is wrong; what stands in the document is never in it.
    """
    if len(data) > max_bytes:
        raise StrictYamlError(f"longer than {max_bytes} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise StrictYamlError("not UTF-8", line, column) from error
    loader = yaml.CSafeLoader(text)
    try:
        return _Builder(loader, max_depth).document()
    except yaml.MarkedYAMLError as error:
        reason = error.problem or "not valid YAML"
        mark = error.problem_mark
        place = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise StrictYamlError(reason, *place) from error
    except yaml.YAMLError as error:
        raise StrictYamlError("a character that YAML does not allow") from error
    finally:
        loader.dispose()


class _Open:
    """A collection under construction. In a mapping, `key` is set between a key and its value."""

    __slots__ = ("awaits_value", "items", "key")

    def __init__(self, items: dict[object, object] | list[object]) -> None:
        self.items = items
        self.key: object = None
        self.awaits_value = False


class _Builder:
    """Builds the value of one document from the events of a loader."""

    def __init__(self, loader: yaml.CSafeLoader, max_depth: int) -> None:
        self._loader = loader
        self._max_depth = max_depth
        self._stack: list[_Open] = []
        self._result: object = None

    def document(self) -> object:
        documents = 0
        while True:
            event = self._loader.get_event()
            match event:
                case None | yaml.StreamEndEvent():
                    return self._result
                case yaml.DocumentStartEvent():
                    documents += 1
                    if documents > 1:
                        raise _at(event, "a second document; only one is allowed")
                case yaml.AliasEvent():
                    raise _at(event, "an alias; aliases are not allowed")
                case yaml.ScalarEvent():
                    self._add(event, self._scalar(event))
                case _ if isinstance(event, _OPENING):
                    self._open(event)
                case _ if isinstance(event, _CLOSING):
                    self._stack.pop()

    def _open(self, event: yaml.CollectionStartEvent) -> None:
        mapping = isinstance(event, yaml.MappingStartEvent)
        if event.tag not in (None, "!", _TAG + ("map" if mapping else "seq")):
            raise _at(event, "a tag that is not allowed")
        if len(self._stack) >= self._max_depth:
            raise _at(event, f"nested deeper than {self._max_depth} levels")
        opened = _Open({} if mapping else [])
        self._add(event, opened.items)
        self._stack.append(opened)

    def _add(self, event: yaml.NodeEvent, value: object) -> None:
        if not self._stack:
            self._result = value
            return
        top = self._stack[-1]
        if isinstance(top.items, list):
            top.items.append(value)
        elif top.awaits_value:
            top.items[top.key] = value
            top.awaits_value = False
        else:
            self._take_key(event, top, top.items, value)

    @staticmethod
    def _take_key(
        event: yaml.NodeEvent, top: _Open, items: dict[object, object], key: object
    ) -> None:
        if isinstance(key, dict | list):
            raise _at(event, "a key must be a plain value")
        if key in items:
            raise _at(event, "a key that is there twice")
        top.key = key
        top.awaits_value = True

    def _scalar(self, event: yaml.ScalarEvent) -> object:
        tag = event.tag
        if tag is None or tag == "!":
            tag = self._loader.resolve(yaml.ScalarNode, event.value, event.implicit)  # type: ignore[no-untyped-call]
        kind = tag.removeprefix(_TAG)
        if kind in _AS_TEXT or (kind in _NUMBERS and ":" in event.value):
            return event.value  # a number to the base of 60 is not what anybody meant
        if kind == "merge":
            raise _at(event, "a merge key; merge keys are not allowed")
        if kind not in _SCALARS:
            raise _at(event, "a tag that is not allowed")
        node = yaml.ScalarNode(tag, event.value)
        try:
            value: object = self._loader.yaml_constructors[tag](self._loader, node)
        except (ValueError, KeyError, IndexError, OverflowError):
            raise _at(event, f"not a valid {kind}") from None
        if isinstance(value, int) and value not in _INTEGERS:
            raise _at(event, "an integer of more than 64 bits")
        return value


def _at(event: yaml.Event, reason: str) -> StrictYamlError:
    mark = event.start_mark
    if mark is None:
        return StrictYamlError(reason)
    return StrictYamlError(reason, mark.line + 1, mark.column + 1)
