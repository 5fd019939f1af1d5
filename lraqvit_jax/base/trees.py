"""Layers inside a parameter tree, by path."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax import traverse_util


def get(tree: Mapping[str, Any], path: str) -> Any:
    """The subtree at "a/b/c"."""
    for name in path.split("/"):
        tree = tree[name]
    return tree


def replace(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the tree with the subtrees at the given paths replaced."""
    copy = dict(tree)
    for path, value in changes.items():
        node, (*parents, last) = copy, path.split("/")
        for name in parents:
            node[name] = dict(node[name])
            node = node[name]
        node[last] = value
    return copy


def map_layers(function: Callable[[Any], Any], tree: Mapping[str, Any], paths: list[str]) -> dict[str, Any]:
    """Replaces the subtree at every path by `function` of it."""
    return replace(tree, {path: function(get(tree, path)) for path in paths})


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": {"b": x}} -> {"a/b": x}."""
    return traverse_util.flatten_dict(tree, sep="/")


def without(tree: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """A copy of the tree without the subtrees at the given paths."""
    gone = tuple(f"{path}/" for path in paths)
    return nest({path: value for path, value in flatten(tree).items() if not f"{path}/".startswith(gone)})
