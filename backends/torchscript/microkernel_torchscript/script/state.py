"""Whether a TorchScript module keeps something from one call for the next, told from its graph.

What is told errs on the safe side: a module that keeps nothing may be said to, where its code hides
what it writes to.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final, TypeAlias

import torch

_UNKNOWN: Final = object()
_SCALARS = frozenset(("IntType", "FloatType", "BoolType", "StringType", "NoneType", "NumberType"))
_NORMALISING = {"aten::batch_norm": 5, "aten::native_batch_norm": 5, "aten::instance_norm": 5}
"""Operators that write to their running statistics, the arguments 3 and 4, where the argument at
this place says so; their schemas are silent about it."""

Path: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Submodule:
    path: Path
    module: Any


@dataclass(frozen=True, slots=True)
class _Fact:
    """What is known of a value of a graph: what it is, if that is certain, and which part of the
    module it may share memory with, "" for none."""

    known: Any = _UNKNOWN
    part: str = ""


class _Found(Exception):
    """A write that outlives the call."""


def kept_state(module: torch.jit.ScriptModule) -> str:
    """What `forward` writes that the next call finds, as the end of a sentence about the module:
    `it sets its attribute 'count'`; "" where it writes nothing.

    Branches that a module in evaluation never takes do not count.
    """
    try:
        _walk(module)
    except _Found as found:
        return str(found)
    except Exception as error:  # noqa: BLE001 - code of every kind comes by, and must be loaded
        return f"its code cannot be followed ({error})"
    return ""


def _walk(module: torch.jit.ScriptModule) -> None:
    forward: Any = module.forward
    graph = forward.inlined_graph
    whole: Any = module._c  # noqa: SLF001 - the only way to attributes as the graph names them
    facts = [_Fact(_Submodule((), whole))] + [_Fact()] * (len(list(graph.inputs())) - 1)
    _Walk().graph(graph, facts)


class _Walk:
    """A walk through a graph in the order in which it runs; raises _Found."""

    def __init__(self) -> None:
        self._facts: dict[str, _Fact] = {}

    def graph(self, graph: Any, inputs: Sequence[_Fact]) -> list[_Fact]:
        """What is known of the results of a graph that gets those inputs."""
        self._note(graph.inputs(), inputs)
        return self._nodes(graph.nodes(), graph.outputs())

    def _nodes(self, nodes: Iterable[Any], outputs: Iterable[Any]) -> list[_Fact]:
        for node in nodes:
            self._note(node.outputs(), self._node(node))
        return self._of(outputs)

    def _of(self, values: Iterable[Any]) -> list[_Fact]:
        return [self._facts.get(value.debugName(), _Fact()) for value in values]

    def _note(self, values: Iterable[Any], facts: Iterable[_Fact]) -> None:
        self._facts.update(zip((value.debugName() for value in values), facts, strict=False))

    def _node(self, node: Any) -> list[_Fact]:
        inputs = self._of(node.inputs())
        if (special := self._special(node, inputs)) is not None:
            return special
        kind = node.kind()
        if kind in _NORMALISING:
            _check_statistics(inputs, inputs[_NORMALISING[kind]])
        schema = None if kind == "aten::wait" else _schema_of(node.schema())
        return _spread(node, inputs) if schema is None else self._operator(node, schema, inputs)

    def _special(self, node: Any, inputs: Sequence[_Fact]) -> list[_Fact] | None:
        """The results of a node that is not an operator on values; None for others."""
        match node.kind():
            case "prim::Constant":
                return [_constant(node)]
            case "prim::GetAttr":
                return [_attribute(inputs[0], node.s("name"))]
            case "prim::SetAttr":
                return self._set(node, inputs)
            case "prim::If":
                return self._branch(node, inputs[0])
            case "prim::Loop":
                return self._loop(node, inputs)
            case "prim::CallMethod" | "prim::CallFunction":
                raise _Found("it calls code that is not known before it runs")
        return _fork(node, inputs) if node.hasAttribute("Subgraph") else None

    def _set(self, node: Any, inputs: Sequence[_Fact]) -> list[_Fact]:
        owner, value = inputs
        if isinstance(owner.known, _Submodule):
            raise _Found(f"it sets its attribute '{_dotted(owner.known, node.s('name'))}'")
        if owner.part:
            raise _Found(f"it changes its attribute '{owner.part}'")
        self._note(list(node.inputs())[:1], [replace(owner, part=value.part)])
        return []

    def _branch(self, node: Any, condition: _Fact) -> list[_Fact]:
        blocks = list(node.blocks())
        if isinstance(condition.known, bool):
            taken = blocks[0 if condition.known else 1]
            return self._nodes(taken.nodes(), taken.outputs())
        first, second = (self._nodes(block.nodes(), block.outputs()) for block in blocks)
        return list(map(_either, first, second))

    def _loop(self, node: Any, inputs: Sequence[_Fact]) -> list[_Fact]:
        """What one turn leaves is what the next one starts with, until nothing new is learnt."""
        (body,) = node.blocks()
        carried = list(inputs[2:])
        while True:
            self._note(body.inputs(), [_Fact(), *carried])
            parts = self._parts()
            left = self._nodes(body.nodes(), body.outputs())[1:]
            merged = list(map(_either, carried, left))
            if merged == carried and parts == self._parts():
                return carried
            carried = merged

    def _parts(self) -> frozenset[str]:
        return frozenset(name for name, fact in self._facts.items() if fact.part)

    def _operator(self, node: Any, schema: Any, inputs: Sequence[_Fact]) -> list[_Fact]:
        part = next((fact.part for fact in inputs if fact.part), "")
        for argument, value, fact in zip(schema.arguments, node.inputs(), inputs, strict=False):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            if fact.part:
                raise _Found(f"it changes its attribute '{fact.part}' in place ({node.kind()})")
            if part:  # a container of its own that now holds a part of the module
                self._note([value], [replace(fact, part=part)])
        return [
            _Fact(_computed(node.kind(), inputs), part if _may_share(value, result) else "")
            for value, result in zip(node.outputs(), schema.returns, strict=False)
        ]


@cache
def _schema_of(text: str) -> Any:
    """An operator's schema; None for a node that has none."""
    try:
        return torch._C.parse_schema(text)  # noqa: SLF001 - there is no public way
    except RuntimeError:
        return None


def _constant(node: Any) -> _Fact:
    value = node.output().toIValue() if node.output().type().kind() != "FunctionType" else _UNKNOWN
    shared = isinstance(value, torch.Tensor | list | dict | torch.ScriptObject)
    return _Fact(value, "a constant" if shared else "")


def _attribute(owner: _Fact, name: str) -> _Fact:
    if not isinstance(owner.known, _Submodule):
        return _Fact(part=owner.part)
    path = _dotted(owner.known, name)
    try:
        value = owner.known.module.getattr(name)
    except RuntimeError:  # a type that Python cannot hold
        return _Fact(part=path)
    if isinstance(value, torch._C.ScriptModule):  # noqa: SLF001 - what attributes hold
        return _Fact(_Submodule((*owner.known.path, name), value))
    return _Fact(value, "" if isinstance(value, bool | int | float | str | None) else path)


def _dotted(owner: _Submodule, name: str) -> str:
    return ".".join((*owner.path, name))


def _either(first: _Fact, second: _Fact) -> _Fact:
    same = first.known is second.known
    return _Fact(first.known if same else _UNKNOWN, first.part or second.part)


def _spread(node: Any, inputs: Sequence[_Fact]) -> list[_Fact]:
    """What is known of the results of a node that only arranges its inputs, as tuples and lists
    do."""
    part = next((fact.part for fact in inputs if fact.part), "")
    return [_Fact(part=part) for _ in node.outputs()]


def _fork(node: Any, inputs: Sequence[_Fact]) -> list[_Fact]:
    """The results of code that runs beside the rest: one output stands for all of them."""
    inner = node.g("Subgraph").copy()
    torch._C._jit_pass_inline(inner)  # noqa: SLF001 - there is no public way
    return _spread(node, _Walk().graph(inner, inputs))


def _may_share(value: Any, result: Any) -> bool:
    kind = value.type().kind()
    if result.alias_info is not None:
        return True
    return kind not in _SCALARS and kind != "TensorType"


def _computed(kind: str, inputs: Sequence[_Fact]) -> Any:
    """The result of an operator that conditions are made of, where its inputs are known."""
    known = [fact.known for fact in inputs]
    if any(value is _UNKNOWN for value in known):
        return _UNKNOWN
    if kind == "aten::__not__":
        return not known[0]
    if kind in ("aten::__is__", "aten::__isnot__") and any(value is None for value in known):
        return (known[0] is known[1]) is (kind == "aten::__is__")
    return _UNKNOWN


def _check_statistics(inputs: Sequence[_Fact], written: _Fact) -> None:
    part = inputs[3].part or inputs[4].part
    if part and written.known is not False:
        raise _Found(f"it updates its running statistics '{part}'")
