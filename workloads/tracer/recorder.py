"""What the model executes: every tensor operation is seen, and those that compute or move something are recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from workloads.errors import WorkloadError
from workloads.record import Recording, Region, Use, Value, region_elements, region_of

FORMAT_OF = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.int8: "int8",
    torch.uint8: "int8",
    torch.bool: "bool",
    torch.complex64: "fp64",  # two fp32 numbers
}

ELEMENTWISE: dict[str, tuple[str, int, int]] = {
    # ATen name: (function, arithmetic operations, transcendental functions) per element
    "add": ("add", 1, 0),
    "sub": ("sub", 1, 0),
    "rsub": ("sub", 1, 0),
    "mul": ("mul", 1, 0),
    "div": ("div", 1, 0),
    "neg": ("neg", 0, 0),  # a sign flip is folded into the operation that follows
    "abs": ("abs", 0, 0),
    "pow": ("pow", 2, 0),  # small integer powers, by multiplication
    "square": ("square", 1, 0),
    "sqrt": ("sqrt", 0, 1),
    "rsqrt": ("rsqrt", 0, 1),
    "reciprocal": ("reciprocal", 1, 0),
    "exp": ("exp", 0, 1),
    "log": ("log", 0, 1),
    "sin": ("sin", 0, 1),
    "cos": ("cos", 0, 1),
    "tanh": ("tanh", 0, 1),
    "erf": ("erf", 0, 1),
    "sigmoid": ("sigmoid", 2, 1),  # 1 / (1 + exp(-x))
    "silu": ("silu", 2, 1),  # x / (1 + exp(-x))
    "gelu": ("gelu", 4, 1),  # x * 0.5 * (1 + erf(x * c))
    "gelu_tanh": ("gelu", 8, 1),  # x * 0.5 * (1 + tanh(c * (x + d * x^3)))
    "relu": ("relu", 1, 0),
    "softplus": ("softplus", 1, 2),  # log(1 + exp(x))
    "clamp": ("clamp", 2, 0),
    "clamp_min": ("clamp", 1, 0),
    "clamp_max": ("clamp", 1, 0),
    "maximum": ("max", 1, 0),
    "minimum": ("min", 1, 0),
    "where": ("where", 1, 0),
    "masked_fill": ("where", 1, 0),
    "eq": ("compare", 1, 0),
    "ne": ("compare", 1, 0),
    "lt": ("compare", 1, 0),
    "le": ("compare", 1, 0),
    "gt": ("compare", 1, 0),
    "ge": ("compare", 1, 0),
    "bitwise_and": ("and", 1, 0),
    "bitwise_or": ("or", 1, 0),
    "bitwise_not": ("not", 1, 0),
    "logical_not": ("not", 1, 0),
    "floor_divide": ("div", 1, 0),
    "remainder": ("remainder", 1, 0),
    "addcmul": ("addcmul", 2, 0),
}
REDUCTIONS = {"sum", "mean", "amax", "amin", "max", "min", "argmax", "cumsum", "prod", "var", "var_mean", "std", "linalg_vector_norm"}
COPIES = {
    "cat": "concat",
    "stack": "concat",
    "clone": "layout",
    "flip": "layout",
    "roll": "layout",
    "copy": "copy",
    "repeat": "repeat",
    "repeat_interleave": "repeat",
    "index": "gather",
    "index_select": "gather",
    "gather": "gather",
    "scatter": "scatter",
    "scatter_add": "scatter",
    "slice_scatter": "scatter",
    "index_put": "scatter",
    "index_add": "scatter",
    "constant_pad_nd": "pad",
}
CREATE = {
    *("empty", "zeros", "ones", "full", "empty_like", "zeros_like", "ones_like", "full_like"),
    *("new_empty", "new_zeros", "new_ones", "new_full", "fill", "zero"),
}


@dataclass(eq=False, slots=True)
class Scope:
    """Operations inside are counted and become one operator when the scope closes."""

    operations: int = 0
    specials: int = 0
    gates: int = 0  # gating activations seen, for norms with a gate


@dataclass(frozen=True)
class Phase:
    """What is traced: `tokens` new tokens for each of `batch` sequences, attending to `context` tokens."""

    name: str
    batch: int
    tokens: int
    context: int


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every tensor operation and records those that compute or move something."""

    def __init__(self, phase: Phase) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = Recording()
        self.phase = phase
        self.path: list[str] = [""]
        self.scope: Scope | None = None
        self.tensors: dict[int, tuple[Value, Region | None]] = {}  # storage: value, and which region of it
        self.alive: list[torch.Tensor] = []  # a storage that was freed could give its identity to another one
        self.notes: dict[str, None] = {}
        self.mixer: Any = None  # the state-space mixer that runs

    # --- values -------------------------------------------------------------------------------------------------------
    @property
    def module(self) -> str:
        return self.path[-1]

    def bind(self, tensor: torch.Tensor, value: Value, region: Region | None = None) -> torch.Tensor:
        """From now on the storage of `tensor` holds (that region of) `value`."""
        self.alive.append(tensor)
        self.tensors[tensor.untyped_storage()._cdata] = (value, region)
        return tensor

    def new(self, tensor: torch.Tensor, role: str = "activation", name: str = "") -> Value:
        """A fresh value for `tensor`."""
        value = Value(tuple(tensor.shape), FORMAT_OF[tensor.dtype], role, name)
        self.bind(tensor, value)
        return value

    def known(self, tensor: torch.Tensor) -> tuple[Value, Region | None] | None:
        """The value in the storage of `tensor`, and the region of it that the storage holds."""
        return self.tensors.get(tensor.untyped_storage()._cdata)

    def _role(self, tensor: torch.Tensor) -> str:
        entry = self.known(tensor)
        return entry[0].role if entry else "constant"

    def use(self, tensor: torch.Tensor) -> Use:
        """How an operation that is given `tensor` reads it."""
        entry = self.known(tensor)
        if entry is None:  # made by an operation that is not part of the computation, such as a buffer made in place
            return Use(self.new(tensor, "constant"), None, tuple(tensor.shape), FORMAT_OF[tensor.dtype])
        value, held = entry
        region = region_of(int(tensor.storage_offset()), tensor.shape, tensor.stride())
        elements = region_elements(region)
        shape = tuple(n for n, s in zip(tensor.shape, tensor.stride(), strict=True) if s != 0) or (1,)
        format = FORMAT_OF[tensor.dtype]
        if held is None:
            return Use(value, None if elements >= value.elements else region, shape, format)
        if elements >= region_elements(held):
            return Use(value, held, shape, format)
        part = Value(tuple(tensor.shape), format, value.role)
        whole = Use(value, held, shape, format)
        self.recording.emit("copy", self.module, [whole], [part], {"elements": elements}, function="slice")
        self.bind(tensor, part)
        return Use(part, None, part.shape, format)

    def uses(self, tensors: Sequence[torch.Tensor]) -> list[Use]:
        """Uses of all tensors but single constants."""
        found = [self.use(t) for t in tensors]
        return [u for u in found if u.value.role != "constant" or u.value.elements > 1]

    def emit(
        self,
        kind: str,
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
        attributes: dict[str, int],
        *,
        function: str = "",
        name: str = "",
        role: str = "activation",
    ) -> None:
        """Record one operation whose outputs are fresh tensors."""
        uses = self.uses(inputs)
        values = [self.new(t, role) for t in outputs]
        self.recording.emit(kind, self.module, uses, values, attributes, function=function, name=name)

    def emit_elementwise(
        self, function: str, inputs: Sequence[torch.Tensor], output: torch.Tensor, operations: int, specials: int, *, name: str = ""
    ) -> None:
        attributes = {"elements": output.numel(), "operations": operations, "specials": specials}
        self.emit("elementwise", inputs, [output], attributes, function=function, name=name)

    def rotate(
        self, suffix: str, rotated: torch.Tensor, tables: Sequence[torch.Tensor], output: torch.Tensor, passed: Sequence[torch.Tensor] = ()
    ) -> torch.Tensor:
        """Record a rotary embedding of `rotated` (x * cos + rotate_half(x) * sin: three operations per element).

        `passed` are parts that the output takes over as they are.
        """
        operations = ceil(3 * rotated.numel() / output.numel())
        self.emit_elementwise("rope", [rotated, *passed, *tables], output, operations, 0, name=f"{self.module}.{suffix}")
        return output

    def cache(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A tensor that lives from step to step, named after the module that owns it."""
        tensor = torch.empty(shape, dtype=dtype, device="meta")
        self.new(tensor, "kv_cache", f"{self.module}.{name}")
        return tensor

    def ssm_state(self) -> torch.Tensor:
        """The recurrent state of the current mixer: (batch, heads, head_dim, state)."""
        mixer = self.mixer
        shape = (self.phase.batch, mixer.num_heads, mixer.head_dim, mixer.ssm_state_size)
        return self.cache("ssm_state", shape, mixer.in_proj.weight.dtype)

    def append(self, suffix: str, new: Sequence[torch.Tensor], cache: torch.Tensor, elements: int) -> None:
        """Record that `elements` values of `new` are written into `cache`."""
        uses = [*self.uses(new), self.use(cache)]
        name = f"{self.module}.{suffix}"
        self.recording.emit("append", self.module, uses, [uses[-1].value], {"elements": elements}, function="append", name=name)

    # --- scopes -------------------------------------------------------------------------------------------------------
    def fused(self, call: Callable[[], Any]) -> tuple[Any, Scope]:
        """Run `call`; its operations are counted, not recorded."""
        outer, self.scope = self.scope, Scope()
        try:
            result = call()
            return result, self.scope
        finally:
            scope, self.scope = self.scope, outer
            if outer is not None and scope is not None:
                outer.operations += scope.operations
                outer.specials += scope.specials

    def _count(self, name: str, tensors: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> None:
        scope = self.scope
        assert scope is not None
        elements = outputs[0].numel() if outputs else 0
        if name in ELEMENTWISE:
            function, operations, specials = ELEMENTWISE[name]
            scope.operations += operations * elements
            scope.specials += specials * elements
            scope.gates += function in ("silu", "sigmoid", "gelu")
        elif name in REDUCTIONS:
            scope.operations += tensors[0].numel()

    # --- dispatch -----------------------------------------------------------------------------------------------------
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in flat((args, (kwargs or {}).values())) if isinstance(t, torch.Tensor)]
        outputs = [t for t in flat(result) if isinstance(t, torch.Tensor)]
        if not outputs:
            return result
        namespace, _, name = func._schema.name.partition("::")
        mutable = func._schema.is_mutable
        if mutable:
            name = name.rstrip("_")
        if name == "gelu" and (kwargs or {}).get("approximate") == "tanh":
            name = "gelu_tanh"
        if self.scope is not None:
            if not mutable and tensors and same_storage(outputs[0], tensors[0]):
                return result
            self._count(name, tensors, outputs)
            return result
        if not mutable and any(same_storage(outputs[0], t) for t in tensors):
            return result  # a view: same storage, same value
        self.record(namespace, name, args, tensors, outputs)
        return result

    def record(self, namespace: str, name: str, args: Any, tensors: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        """Record the operation `name` that read `tensors` and wrote `outputs`."""
        if namespace == "dovetail":
            RULES[name](self, args, outputs)
            return
        if name != "embedding" and not any(self._role(t) in ("activation", "kv_cache") for t in tensors):
            weight = next((t for t in tensors if self._role(t) == "weight"), None)
            if weight is None:
                for tensor in outputs:
                    self.new(tensor, "constant")
                return
            if weight.numel() == outputs[0].numel():  # computed from weights alone: done once when the model is loaded
                use = self.use(weight)
                self.bind(outputs[0], use.value, use.region)
                return
        if name in RULES:
            RULES[name](self, args, outputs)
        elif name == "_to_copy":  # a cast: folded into the operations before and after it
            use = self.use(tensors[0])
            self.bind(outputs[0], use.value, use.region)
        elif name in ELEMENTWISE:
            self._elementwise(name, tensors, outputs)
        elif name in REDUCTIONS:
            self.emit("reduce", tensors, outputs, {"elements": tensors[0].numel(), "operations": 1}, function=name)
        elif name in COPIES:
            self._copy(name, tensors, outputs)
        elif name in CREATE:
            for tensor in outputs:
                self.new(tensor, "constant")
        else:
            raise WorkloadError(
                f"{self.module or 'model'}: the tensor operation aten::{name} has no operator kind; "
                "expected products, norms, softmax, elementwise operations, reductions, gathers and copies"
            )

    def _elementwise(self, name: str, tensors: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        function, operations, specials = ELEMENTWISE[name]
        if function == "add" and self._bias(tensors, outputs[0]):
            return
        real = [t for t in tensors if t.numel() > 1 or self._role(t) == "activation"]
        self.emit_elementwise(function, real, outputs[0], operations, specials)

    def _bias(self, tensors: list[torch.Tensor], output: torch.Tensor) -> bool:
        """Whether this addition is the bias of the product just recorded; it then belongs to that product."""
        if not self.recording.entries or len(tensors) != 2:
            return False
        product = self.recording.entries[-1]
        uses = [self.use(t) for t in tensors]
        bias = next((u for u in uses if u.value.role == "weight" and u.value.elements == product.attributes.get("n")), None)
        if product.kind != "matmul" or len(product.inputs) != 2 or bias is None or not any(u.value is product.outputs[0] for u in uses):
            return False
        product.inputs.append(bias)
        self.bind(output, product.outputs[0])
        return True

    def _copy(self, name: str, tensors: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        if name == "cat":
            self._rope_concat(tensors, outputs)
            return
        self.emit("copy", tensors, outputs, {"elements": outputs[0].numel()}, function=COPIES[name])

    def _rope_concat(self, tensors: list[torch.Tensor], outputs: list[torch.Tensor]) -> None:
        """A concatenation of rotated and passed-through parts belongs to the rotation; any other is a copy."""
        uses = self.uses(tensors)
        for use in uses:
            rope = self.recording.producer(use.value)
            if rope is not None and rope.function == "rope" and not self.recording.is_read(use.value):
                rotated = rope.attributes["elements"] * rope.attributes["operations"]
                value = self.new(outputs[0], name=rope.name)
                self.recording.extend(rope, [u for u in uses if u is not use], value)
                rope.attributes |= {"elements": value.elements, "operations": ceil(rotated / value.elements)}
                return
        self.emit("copy", tensors, outputs, {"elements": outputs[0].numel()}, function="concat")


Rule = Callable[[Recorder, Any, list[torch.Tensor]], None]
RULES: dict[str, Rule] = {}
"""How a tensor operation becomes an operator: recorder, arguments, outputs. Filled by `workloads.tracer.operators`."""


def flat(value: Any) -> Iterator[Any]:
    """The leaves of nested tuples, lists and dictionaries."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from flat(value.values())
    elif isinstance(value, (tuple, list)) or type(value).__name__ in ("dict_values", "odict_values"):
        for item in value:
            yield from flat(item)


def same_storage(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)
