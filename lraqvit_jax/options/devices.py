"""Devices, and how arrays lie on them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class MeshSizes:
    """Devices along each axis of the mesh; one of them may be -1, all that remain."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Logical axes of arrays, and the mesh axes over which each is spread; `sharding.check_rules` says what fits."""

    batch: tuple[str, ...] = ("data", "fsdp")
    tokens: tuple[str, ...] = ()
    patch: tuple[str, ...] = ()
    embed: tuple[str, ...] = ("fsdp",)
    heads: tuple[str, ...] = ("tensor",)
    mlp: tuple[str, ...] = ("tensor",)
    rank: tuple[str, ...] = ()  # of a factor that meets "embed"
    inner_rank: tuple[str, ...] = ("fsdp",)  # of one that does not: else half of every pair is whole everywhere
    classes: tuple[str, ...] = ()
