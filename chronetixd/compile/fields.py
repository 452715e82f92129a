"""Typed readers of a document's fields: each returns the value, or notes an InvalidField and returns None.

Rules: an absent or null field is no problem here; a wrong type is a problem at the value's place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chronetix.protocol.nearest import did_you_mean, nearest
from chronetixd.compile.problems import Findings
from chronetixd.compile.tree import SyntaxNode


def kind_of(node: SyntaxNode) -> str:
    """Return the kind of a value, in words for a message."""
    match node.value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case dict():
            return "a mapping"
        case _:
            return "a list"


def text_of(node: SyntaxNode, key: str, findings: Findings, owner: str) -> str | None:
    """Return the non-empty text at ``key``, else None."""
    found = node.get(key)
    if found is None:
        return None
    if isinstance(found.value, str) and found.value:
        return found.value
    what = "empty" if found.value == "" else kind_of(found)
    findings.problem(found.place, "InvalidField", f"{owner}: {key} must be text, it is {what}", _quotes(found))
    return None


def label_of(node: SyntaxNode, key: str, findings: Findings, owner: str) -> str | None:
    """Return the non-empty text at ``key``, else None. A number counts as the text that it was written as, with a
    warning: ids and versions are often written without quotes."""
    found = node.get(key)
    if found is None or isinstance(found.value, bool) or not isinstance(found.value, int | float):
        return text_of(node, key, findings, owner)
    text = found.written or str(found.value)
    message = f'{owner}: {key} is a number, and is taken for the text "{text}"'
    findings.warning(found.place, "InvalidField", message, f'write {key}: "{text}"')
    return text


def version_of(node: SyntaxNode, key: str, findings: Findings, owner: str) -> str | None:
    """Return the schema version at ``key``, else None; the number 3 means the version "v3", as it does in the WIT."""
    found = node.get(key)
    if found is None or type(found.value) is not int or found.value < 0:
        return label_of(node, key, findings, owner)
    message = f'{owner}: {key} is a number, and is taken for "v{found.value}"'
    findings.warning(found.place, "InvalidField", message, f"write {key}: v{found.value}")
    return f"v{found.value}"


def mapping_of(node: SyntaxNode, key: str, findings: Findings, owner: str) -> SyntaxNode | None:
    """Return the mapping at ``key``, else None."""
    found = node.get(key)
    if found is None or isinstance(found.value, dict):
        return found
    findings.problem(found.place, "InvalidField", f"{owner}: {key} must be a mapping, it is {kind_of(found)}")
    return None


def list_of(node: SyntaxNode, key: str, findings: Findings, owner: str) -> list[SyntaxNode]:
    """Return the mappings in the list at ``key``; a mapping that is in no list counts as a list of one."""
    found = node.get(key)
    if found is None:
        return []
    if isinstance(found.value, dict):
        return [found]
    if not isinstance(found.value, list):
        findings.problem(found.place, "InvalidField", f"{owner}: {key} must be a list, it is {kind_of(found)}")
        return []
    for item in found.value:
        if not isinstance(item.value, dict):
            message = f"{owner}: every entry of {key} must be a mapping, this one is {kind_of(item)}"
            findings.problem(item.place, "InvalidField", message)
    return [item for item in found.value if isinstance(item.value, dict)]


def count_of(node: SyntaxNode, key: str, findings: Findings, owner: str, *, least: int = 0) -> int | None:
    """Return the whole number at ``key``, at least ``least``, else None."""
    found = node.get(key)
    if found is None:
        return None
    if isinstance(found.value, int) and not isinstance(found.value, bool) and found.value >= least:
        return found.value
    plain = isinstance(found.value, int | float | str) and not isinstance(found.value, bool)
    shown = repr(found.value) if plain else kind_of(found)
    message = f"{owner}: {key} must be a whole number of at least {least}, it is {shown}"
    findings.problem(found.place, "InvalidField", message)
    return None


def choice_of(node: SyntaxNode, key: str, choices: Sequence[str], findings: Findings, owner: str) -> str | None:
    """Return the text at ``key``, one of ``choices``, else None."""
    text = text_of(node, key, findings, owner)
    if text is None or text in choices:
        return text
    same = next((choice for choice in choices if choice.lower() == text.lower()), None)
    hint = f'write "{same}"' if same else did_you_mean(text, choices, f"one of: {', '.join(choices)}")
    found = node.fields[key]
    findings.problem(found.place, "InvalidField", f'{owner}: "{text}" is no {key}', hint)
    return None


def usual_choice_of(
    node: SyntaxNode, key: str, choices: Sequence[str], findings: Findings, owner: str, effect: str
) -> str | None:
    """Return the text at ``key``, else None; a text that is none of ``choices`` is kept, with a warning that tells its
    ``effect``."""
    text = text_of(node, key, findings, owner)
    if text is None or text in choices:
        return text
    same = next((choice for choice in choices if choice.lower() == text.lower()), None)
    hint = f'write "{same}"' if same else did_you_mean(text, choices, f"usual: {', '.join(choices)}")
    message = f'{owner}: the {key} "{text}" is not known; {effect}'
    findings.warning(node.fields[key].place, "InvalidField", message, hint)
    return text


def warn_near_misses(node: SyntaxNode, known: Iterable[str], findings: Findings, owner: str) -> None:
    """Warn of unknown fields that resemble a known field that is absent; other unknown fields are no problem."""
    names = set(known)
    for key in node.fields:
        if key in names:
            continue
        meant = nearest(key, names - node.fields.keys())
        if meant is not None:
            message = f'{owner}: unknown field "{key}" is passed on unread'
            findings.warning(node.place_of(key), "InvalidField", message, f'did you mean "{meant}"?')


def _quotes(found: SyntaxNode) -> str:
    if isinstance(found.value, bool | int | float):
        return "put it in quotes if it is meant as text"
    return ""
