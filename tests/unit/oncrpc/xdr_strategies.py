"""Values of any XDR type for hypothesis, made from its declaration alone."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from hypothesis import strategies as st

from appliance.oncrpc import xdr_composed as composed
from appliance.oncrpc import xdr_kinds as kinds
from appliance.oncrpc.xdr import Codec

WORDS = {
    "i": (-(1 << 31), (1 << 31) - 1),
    "I": (0, (1 << 32) - 1),
    "q": (-(1 << 63), (1 << 63) - 1),
    "Q": (0, (1 << 64) - 1),
}


def values(kind: kinds.Kind) -> st.SearchStrategy[Any]:
    """Any value of this kind."""
    match kind:
        case kinds.Void():
            return st.none()
        case kinds.Word(fmt=fmt):
            return st.integers(*WORDS[fmt])
        case kinds.Enumeration(enum=enum):
            return st.sampled_from(list(enum))
        case kinds.Boolean():
            return st.booleans()
        case kinds.FixedOpaque(size=size):
            return st.binary(min_size=size, max_size=size)
        case kinds.VariableOpaque(limit=limit):
            return st.binary(max_size=min(limit, 30))
        case kinds.Bulk():
            return st.lists(st.binary(max_size=9), max_size=3)
        case composed.Structure(cls=cls, fields=fields):
            return st.builds(cls, *(values(field) for _, field in fields))
        case _:
            return composed_values(kind)


def composed_values(kind: kinds.Kind) -> st.SearchStrategy[Any]:
    """Of kinds that are made of others."""
    match kind:
        case composed.Encodable(structure=structure):
            return values(structure)
        case composed.Optional(inner=inner):
            return st.none() | values(inner)
        case composed.FixedArray(inner=inner, count=count):
            return st.lists(values(inner), min_size=count, max_size=count)
        case (
            composed.Array(inner=inner, limit=limit) | composed.LinkedList(inner=inner, limit=limit)
        ):
            return st.lists(values(inner), max_size=min(limit, 4))
        case composed.Union(arms=arms):
            return st.one_of([values(arm.__xdr__.kind) for arm in arms])
        case _:
            raise AssertionError(kind)


def declared_in(*modules: ModuleType) -> list[Codec[Any]]:
    """Every struct that these modules declare."""
    return [
        thing.__xdr__
        for module in modules
        for thing in vars(module).values()
        if isinstance(thing, type)
        and hasattr(thing, "__xdr__")
        and thing.__module__ == module.__name__
    ]
