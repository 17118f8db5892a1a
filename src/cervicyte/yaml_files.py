"""YAML as people write it for us: a key that stands twice is a mistake, of which no half is taken."""

from __future__ import annotations

from typing import Any

import yaml


class _EachKeyOnce(yaml.SafeLoader):
    """Refuses what YAML forbids and PyYAML allows: a mapping with the same key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping; a merge (`<<`) may still bring keys that stand there."""
        seen = set()
        for key, _ in node.value:
            place = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if place is not None and place in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value} stands twice", problem_mark=key.start_mark
                )
            seen.add(place)
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """Return what YAML says.

    Raises:
        yaml.YAMLError: it is none, a key stands twice in one mapping, or it is nested beyond all measure.
    """
    try:
        return yaml.load(text, Loader=_EachKeyOnce)  # a safe loader
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply") from error
    except ValueError as error:  # such as a date that does not exist
        raise yaml.YAMLError(str(error)) from error
