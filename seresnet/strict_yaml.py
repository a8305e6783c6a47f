"""YAML text to a tree in which every value knows the file and line that wrote it; faults are gathered, not raised one by one.

Only the plain part of YAML is read, and scalars by the rules of YAML 1.2: `1e-4` is a number, `no`, `017`, `1:30` and dates are text.
What a key means is left to the callers. One invariant: a value that looks like a secret reaches neither the tree nor a message.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from seresnet.errors import ConfigError

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# A W&B key: 40 hex digits, those of a server of one's own after "local-", or the newer wandb_v1_ form. After a slash they may be
# a digest in a path; as the user of a URL they are a key again.
_SECRET = re.compile(
    r"(?<![0-9A-Za-z/_-])(?:local-)?[0-9a-fA-F]{40}(?![0-9A-Za-z])|(?<=//)[0-9a-fA-F]{40}(?=@)|wandb_v[0-9]+_[0-9A-Za-z_]{16,}"
)
_SECRET_ADVICE = "Take it out, have it revoked, and set WANDB_API_KEY in the environment"
SECRET_PROBLEM = f"the value looks like a W&B key, and files are copied into sweeps. {_SECRET_ADVICE}."
_HIDDEN = "(hidden)"
_SHOWN_CHARACTERS = 60


class Bad(Enum):
    """Stands in the tree for a value whose fault is already noted: readers pass over it."""

    BAD = "bad"


@dataclass(frozen=True, order=True)
class Place:
    """Where a value was written: a line of a file, or an override of the command line."""

    source: str
    line: int = 0  # counts from 1; 0 = the source has no lines

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True, kw_only=True)
class Located:
    """A value and its place. Scalars are Python's, lists hold Located, mappings map text to Located."""

    value: Any  # None | bool | int | float | str | list[Located] | dict[str, Located] | Bad
    place: Place
    text: str = ""  # a scalar as it was written, for messages

    def plain(self) -> Any:
        """The same without places."""
        if isinstance(self.value, dict):
            return {key: entry.plain() for key, entry in self.value.items()}
        return [entry.plain() for entry in self.value] if isinstance(self.value, list) else self.value

    def shown(self) -> str:
        """The value for a message: text in quotes, numbers as they were written."""
        if isinstance(self.value, dict):
            return "a mapping"
        whole = f"[{', '.join(entry.shown() for entry in self.value)}]" if isinstance(self.value, list) else self.text
        whole = repr(self.value) if isinstance(self.value, str) else whole or "null"
        return whole if len(whole) <= _SHOWN_CHARACTERS else whole[: _SHOWN_CHARACTERS - 4] + " ..."


@dataclass
class Faults:
    """What is wrong so far. Raised all at once, in the order of files and lines, each fault once."""

    _found: dict[str, tuple[int, int]] = field(default_factory=dict)
    _sources: list[str] = field(default_factory=list)

    def add(self, place: Place, label: str, problem: str) -> None:
        """Note one fault; label is the dotted key, or "" where the whole file is meant."""
        if place.source not in self._sources:
            self._sources.append(place.source)
        line = _SECRET.sub(_HIDDEN, f"{place}: {label}: {problem}" if label else f"{place}: {problem}")
        self._found.setdefault(line, (self._sources.index(place.source), place.line))

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_any(self) -> None:
        """Raise ConfigError with a line for each fault; nothing happens without faults."""
        if self._found:
            raise ConfigError("\n".join(sorted(self._found, key=lambda line: self._found[line])))


def read_yaml(path: Path, faults: Faults) -> tuple[Located, str]:
    """A file's tree and its text. The tree is Bad after a fault that hides the rest; messages call the file str(path)."""
    source, nothing = str(path), Located(value=Bad.BAD, place=Place(str(path)))
    try:
        payload = path.read_bytes()
        text = payload.decode("utf-8-sig")
    except OSError as error:
        faults.add(Place(source), "", f"cannot be read: {error.strerror}. {near_file(path)}")
        return nothing, ""
    except UnicodeDecodeError as error:
        line = payload[: error.start].count(b"\n") + 1
        faults.add(Place(source, line), "", f"byte 0x{payload[error.start]:02x} is not UTF-8 text. Save the file as UTF-8.")
        return nothing, ""
    _refuse_secret_comments(text, source, faults)
    return parse_yaml(text, source, faults), text


def parse_yaml(text: str, source: str, faults: Faults, *, line_less: bool = False) -> Located:
    """The tree of one YAML document; an empty one is None. Bad after a syntax error. line_less: places carry no line."""
    try:
        node = _Composer(text).get_single_node()
        return _Reader(source, faults, line_less).read(node, "")
    except yaml.reader.ReaderError as error:
        line, problem = text[: error.position].count("\n") + 1, f"character {error.character:#06x} is not allowed"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, problem = (mark.line + 1 if mark else 1), ", ".join(filter(None, (error.context, error.problem)))
    except RecursionError:
        line, problem = 1, "it is nested too deeply"
    faults.add(Place(source, 0 if line_less else line), "", f"this is not YAML: {problem}. Check indents, quotes and brackets nearby.")
    return Located(value=Bad.BAD, place=Place(source))


def located(value: Any, source: str) -> Located:
    """Plain Python values as a tree that names one source, e.g. what another reader took from run.yaml."""
    place = Place(source)
    if isinstance(value, Mapping):
        return Located(value={str(key): located(entry, source) for key, entry in value.items()}, place=place)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return Located(value=[located(entry, source) for entry in value], place=place)
    text = "null" if value is None else str(value)
    return Located(value=value, place=place, text=text.lower() if isinstance(value, bool) else text)


def resolve_plain(text: str) -> bool | int | float | str | None:
    """The value of an unquoted scalar under YAML 1.2; what merely resembles a number under YAML 1.1 is text."""
    if text in _WORDS:
        return None
    if text in _WORDS_BOOL:
        return _WORDS_BOOL[text]
    if _INT.fullmatch(text) and len(text) < 1000:  # int() of a very long text raises
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "")) if _NOT_FINITE.fullmatch(text) else text


def hide_secrets(text: str) -> str:
    """text, or a stand-in if it looks like a W&B key."""
    return _HIDDEN if _SECRET.search(text) else text


def _refuse_secret_comments(text: str, source: str, faults: Faults) -> None:
    # Files are copied with their comments. Only lines that speak of a key: 40 hex digits may as well be a commit.
    for number, line in enumerate(text.splitlines(), start=1):
        comment = line.partition("#")[2]
        if re.search(r"wandb|w&b|key", comment, re.IGNORECASE) and _SECRET.search(comment):
            faults.add(Place(source, number), "", f"the comment holds what looks like a W&B key, and files are copied. {_SECRET_ADVICE}.")


class _Composer(yaml.SafeLoader):
    """Composes nodes only. Aliases and explicit tags become marked nodes, so that they can be refused by line."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (the parent's attribute; ours resolves later)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            alias: Any = self.get_event()  # type: ignore[no-untyped-call]
            return yaml.ScalarNode("!alias", f"*{alias.anchor}", alias.start_mark, alias.end_mark)
        node = super().compose_node(parent, index)
        if event.tag is not None and node is not None:
            node.tag = "!explicit"
        return node


@dataclass(frozen=True)
class _Reader:
    """Nodes of PyYAML to Located, noting what is refused."""

    source: str
    faults: Faults
    line_less: bool

    def read(self, node: Any, label: str) -> Located:
        place = self._place(node)
        if node is None:
            return Located(value=None, place=place)
        if node.tag == "!alias":
            return self._refuse(place, label, f"{node.value} is an alias, and aliases are not read. Write the value out.")
        if node.tag == "!explicit":
            return self._refuse(place, label, "a YAML tag (!...) is not read. Write the plain value.")
        if isinstance(node, yaml.MappingNode):
            return Located(value=self._mapping(node, label), place=place)
        if isinstance(node, yaml.SequenceNode):
            return Located(value=[self.read(entry, label) for entry in node.value], place=place)
        return self._scalar(node, label, place)

    def _scalar(self, node: Any, label: str, place: Place) -> Located:
        if _SECRET.search(node.value):
            return self._refuse(place, label, SECRET_PROBLEM)
        value = resolve_plain(node.value) if node.style is None else node.value
        return Located(value=value, place=place, text=node.value)

    def _mapping(self, node: Any, label: str) -> dict[str, Located]:
        entries: dict[str, Located] = {}
        for key_node, value_node in node.value:
            place = self._place(key_node)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag in ("!alias", "!explicit"):
                self._refuse(place, label, "a key must be plain text. Write KEY: VALUE.")
                continue
            key = hide_secrets(key_node.value)
            dotted = f"{label}.{key}" if label else key
            if key_node.style is None and key == "<<":
                self._refuse(place, dotted, "merge keys are not read. Write the values out, or share them through base.")
            elif key in entries:
                self._refuse(place, dotted, f"the key is given twice, first at {entries[key].place}. Keep one.")
            else:
                entries[key] = replace(self.read(value_node, dotted), place=place)
        return entries

    def _refuse(self, place: Place, label: str, problem: str) -> Located:
        self.faults.add(place, label, problem)
        return Located(value=Bad.BAD, place=place)

    def _place(self, node: Any) -> Place:
        return Place(self.source, 0 if self.line_less else node.start_mark.line + 1 if node else 1)


def is_file(path: Path) -> bool:
    """Path.is_file, but a name that is too long is no file rather than an OSError."""
    try:
        return path.is_file()
    except OSError:
        return False


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that a typo most probably meant."""
    found = difflib.get_close_matches(name, known, n=1)
    return found[0] if found else None


def near_file(path: Path) -> str:
    """A fix for a file that is not there: the file beside it whose name is nearest."""
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
    except OSError:
        return f"There is no folder {path.parent}."
    near = nearest(path.name, names)
    return f"Did you mean {path.parent / near}?" if near else f"Name a file of {path.parent}{'/' if str(path.parent) != '/' else ''}."
