"""YAML of character files, from its events alone: texts, lists and mappings, nothing else.

No tags, no anchors, no types: what a YAML reader would make a date or a truth value stays the
text that was written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from personas.persona import CardError

if TYPE_CHECKING:
    from personas.limits import ImportLimits
    from personas.persona import JsonValue

__all__ = ["load_yaml"]

_NULLS = ("", "~", "null", "Null", "NULL")


def load_yaml(text: str, limits: ImportLimits) -> JsonValue:
    """The first document's value. Raises `CardError`: `too_large`, `too_deep`, `too_many_values`,
    `bad_yaml` (`where` is `line:column`), also for anchors, aliases and keys that are no text.
    """
    # Here, so that importing the room stays light.
    import yaml

    if len(text) > limits.yaml_bytes:
        message = f"the YAML has {len(text)} characters, more than {limits.yaml_bytes}"
        raise CardError("too_large", message)
    open_nodes: list[tuple[JsonValue, str | None]] = []  # a container, and the key it waits for
    root: JsonValue = None
    count = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            count += 1
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise CardError("bad_yaml", "anchors and aliases are not read", where=_at(event))
            if isinstance(event, yaml.CollectionEndEvent):
                open_nodes.pop()
                if not open_nodes:
                    return root
            if not isinstance(event, yaml.NodeEvent):
                continue
            if len(open_nodes) >= limits.json_depth or count > limits.json_values:
                raise CardError("too_deep", "the YAML is nested too deep", where=_at(event))
            node: JsonValue
            if isinstance(event, yaml.ScalarEvent):
                plain = event.style is None and event.value in _NULLS
                node = None if plain else str(event.value)
            else:
                node = {} if isinstance(event, yaml.MappingStartEvent) else []
            if not open_nodes:
                root = node
            else:
                _put(open_nodes, node, _at(event))
            if not isinstance(event, yaml.ScalarEvent):
                open_nodes.append((node, None))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{mark.line + 1}:{mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "no YAML"
        raise CardError("bad_yaml", f"{problem} at {where}", where=where) from None
    return root


def _put(open_nodes: list[tuple[JsonValue, str | None]], node: JsonValue, where: str) -> None:
    """Adds a node to the innermost container: as item, as key, or as the key's value."""
    holder, key = open_nodes[-1]
    if isinstance(holder, list):
        holder.append(node)
    elif isinstance(holder, dict) and key is None:
        if not isinstance(node, str):
            raise CardError("bad_yaml", "a key is no text", where=where)
        open_nodes[-1] = (holder, node)
    elif isinstance(holder, dict) and key is not None:
        holder[key] = node
        open_nodes[-1] = (holder, None)


def _at(event: object) -> str:
    mark = getattr(event, "start_mark", None)
    return f"{mark.line + 1}:{mark.column + 1}" if mark else ""
