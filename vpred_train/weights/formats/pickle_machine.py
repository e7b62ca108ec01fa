"""Interprets the subset of pickle that PyTorch's state dicts need, without importing or calling anything.

`pickletools` splits the stream into opcodes. The name of a class or function becomes a `Global`. Only names in ALLOWED,
Lightning's callbacks and TorchScript's generated classes are accepted, and none of them is ever looked up.
"""

import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from vpred_train.foreign import printable
from vpred_train.weights.formats.stored_tensor import MOST_AXES

REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
REBUILD_PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
ORDERED_DICT = "collections.OrderedDict"
# These calls make a numpy number or text, such as a score among a training's states. Their result is not needed.
SCALARS = {
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype", "_codecs.encode",
}  # fmt: skip
MOST_REPEATED = 1 << 24  # most elements of a tensor whose strides of 0 make it larger than its storage
# Lightning stores the state of a callback under its class.
CALLBACK = re.compile(r"(pytorch_lightning|lightning\.pytorch|lightning_fabric)\.callbacks(\.\w+)+")
SCRIPT_CLASS = re.compile(r"__torch__(\.\w+)+")  # TorchScript generates one for each module that it saves
# TorchScript's own functions return their first argument as a typed list, or unchanged.
SCRIPT_VALUES = {
    f"torch.jit._pickle.{name}"
    for name in ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
}
STORAGE_TYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip
ALLOWED = {
    REBUILD_TENSOR, *REBUILD_PARAMETERS, ORDERED_DICT, *SCALARS, *SCRIPT_VALUES,
    *(f"torch.{name}" for name in STORAGE_TYPES),
}  # fmt: skip


class RefusedPickleError(Exception):
    """Reports that the stream asks for more than tensors and plain values; the message names what."""


@dataclass(frozen=True)
class Global:
    """Holds a dotted name of the stream that is accepted."""

    name: str


@dataclass(frozen=True)
class Scalar:
    """Represents the result of a call of one of SCALARS."""


class Module(dict[str, Any]):
    """Represents an object of a TorchScript class: its attributes by name."""


@dataclass(frozen=True)
class Storage:
    """Represents a persistent id: `size` elements under `key`, from element `start` on."""

    key: str
    dtype: str
    size: int
    start: int = 0


@dataclass(frozen=True)
class TensorView:
    """Describes a tensor as rebuilt from its storage; `offset` and `strides` count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


MARK = object()


class Stream(Protocol):
    """Declares the methods that pickletools calls on a file."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self) -> bytes: ...


class Machine:
    """Interprets one pickle with a stack and a memo, and collects the storages that it finds."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: list[Storage] = []

    def run(self, file: Stream) -> Any:
        """Return the object of the pickle at the file's position, and move the position behind the pickle.

        Raises RefusedPickleError: when the stream asks for anything not allowed.
        Raises ValueError: when the stream is damaged.
        """
        try:
            for opcode, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]  # two methods suffice
                self._step(opcode.name, argument)
            (value,) = self.stack
        except (IndexError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"damaged pickle ({type(error).__name__}: {error})") from None
        return value

    def _step(self, name: str, argument: Any) -> None:
        if name in LITERALS:
            self.stack.append(LITERALS[name](argument))
        elif name in ACTIONS:
            ACTIONS[name](self, argument)
        elif name not in IGNORED:
            raise RefusedPickleError(f"pickle opcode {name}")

    def _pop_mark(self) -> list[Any]:
        """Pop the items above the topmost mark, and the mark itself."""
        at = len(self.stack) - 1
        while self.stack[at] is not MARK:
            at -= 1
            if at < 0:
                raise IndexError("no mark")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _pop(self, count: int) -> list[Any]:
        items = self.stack[len(self.stack) - count :]
        if len(items) != count:
            raise IndexError("empty stack")
        del self.stack[len(self.stack) - count :]
        return items

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _put(self, argument: int) -> None:
        self.memo[argument] = self.stack[-1]

    def _get(self, argument: int) -> None:
        self.stack.append(self.memo[argument])

    def _global(self, argument: str) -> None:
        self.stack.append(_allowed(argument.replace(" ", ".", 1)))

    def _stack_global(self, _: Any) -> None:
        self.stack.append(_allowed(".".join(self._pop(2))))

    def _append(self, _: Any) -> None:
        items = self._pop(1)
        self._list().extend(items)

    def _appends(self, _: Any) -> None:
        items = self._pop_mark()
        self._list().extend(items)

    def _list(self) -> list[Any]:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError("append to an object that is not a list")
        return target

    def _set_item(self, _: Any) -> None:
        self._update(self._pop(2))

    def _set_items(self, _: Any) -> None:
        self._update(self._pop_mark())

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise TypeError("item of an object that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # No tuples as keys: hashing nested tuples that repeat one tuple takes exponential time.
            if not isinstance(key, (str, int, float, Global, type(None))):
                raise TypeError(f"a {type(key).__name__} as a key")
            target[key] = value

    def _build(self, _: Any) -> None:
        """Keep the state of a TorchScript module. Discard that of an OrderedDict (`_metadata`) or of a number's type.

        No other object may have a state.
        """
        (state,) = self._pop(1)
        target = self.stack[-1]
        if isinstance(target, Module):
            if not isinstance(state, dict) or any(not isinstance(name, str) for name in state):
                raise TypeError("a module whose state is not a dict of attributes")
            target.update(state)
        elif not isinstance(target, (dict, Scalar)):
            raise RefusedPickleError("pickle opcode BUILD on an object that is not an OrderedDict")

    def _new_object(self, _: Any) -> None:
        """Make an empty TorchScript module; no other class may make an object."""
        kind, arguments = self._pop(2)
        name = kind.name if isinstance(kind, Global) else type(kind).__name__
        if not SCRIPT_CLASS.fullmatch(name) or arguments != ():
            raise RefusedPickleError(printable(f"pickle opcode NEWOBJ of {name}"))
        self.stack.append(Module())

    def _reduce(self, _: Any) -> None:
        function, arguments = self._pop(2)
        name = function.name if isinstance(function, Global) else None
        if not isinstance(arguments, tuple):
            raise TypeError("a call without a tuple of arguments")
        if name == ORDERED_DICT:
            self.stack.append(_ordered(*arguments))
        elif name == REBUILD_TENSOR:
            self.stack.append(_tensor(arguments))
        elif name in REBUILD_PARAMETERS and arguments and isinstance(arguments[0], TensorView):
            self.stack.append(arguments[0])
        elif name in SCALARS:
            self.stack.append(Scalar())
        elif name in SCRIPT_VALUES and arguments:
            self.stack.append(arguments[0])
        else:
            shown = name or (function if isinstance(function, (int, str)) else type(function).__name__)
            raise RefusedPickleError(printable(f"a call of {shown}"))

    def _persistent(self, _: Any) -> None:
        (reference,) = self._pop(1)
        self.storages.append(_storage(reference))
        self.stack.append(self.storages[-1])


def _allowed(name: str) -> Global:
    if name not in ALLOWED and not CALLBACK.fullmatch(name) and not SCRIPT_CLASS.fullmatch(name):
        raise RefusedPickleError(printable(name))
    return Global(name)


def _ordered(items: Any = ()) -> dict[Any, Any]:
    """Build an OrderedDict that is empty, or made of pairs, as older protocols write it."""
    found: dict[Any, Any] = {}
    for key, value in items:
        if not isinstance(key, (str, int)):
            raise TypeError(f"a {type(key).__name__} as a key")
        found[key] = value
    return found


def _storage(reference: Any) -> Storage:
    """Parse ("storage", type, key, device, size[, view]); older files have a view (key, first element, size)."""
    if not isinstance(reference, tuple) or len(reference) not in (5, 6) or reference[0] != "storage":
        raise TypeError("a reference to an object that is not a storage")
    _, kind, key, _, size, *view = reference
    if not isinstance(key, str) or not isinstance(kind, Global):
        raise TypeError("a storage without key or type")
    start = 0
    if view and view[0] is not None:
        _, start, size = view[0]
    _require_sizes(start, size)
    dtype = STORAGE_TYPES[kind.name.removeprefix("torch.")]
    return Storage(key, dtype, size, start)


def _tensor(arguments: tuple[Any, ...]) -> TensorView:
    """Build the tensor after checking that it lies within its storage."""
    storage, offset, shape, strides, *_ = arguments
    if not (isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise TypeError("a tensor without storage, shape or strides")
    _require_sizes(offset, *shape, *strides)
    if not len(shape) == len(strides) <= MOST_AXES:
        raise ValueError(f"a tensor of {len(shape)} axes and {len(strides)} strides")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise ValueError(f"a tensor of shape {shape} reaches beyond its storage of {storage.size}")
    if math.prod(shape) > max(storage.size, MOST_REPEATED):
        raise ValueError(f"a tensor of shape {shape} repeats its storage of {storage.size} too often")
    return TensorView(storage, offset, shape, strides)


def _require_sizes(*numbers: Any) -> None:
    """Raise ValueError for a value that is no count of elements."""
    for number in numbers:
        if not isinstance(number, int) or not 0 <= number < 1 << 63:
            raise ValueError(f"a {type(number).__name__} that is not a size")


def _identity(argument: Any) -> Any:
    return argument


LITERALS: dict[str, Callable[[Any], Any]] = {
    "EMPTY_DICT": lambda _: {}, "EMPTY_LIST": lambda _: [], "EMPTY_TUPLE": lambda _: (), "MARK": lambda _: MARK,
    "NONE": lambda _: None, "NEWTRUE": lambda _: True, "NEWFALSE": lambda _: False,
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "BINFLOAT", "FLOAT", "BINUNICODE", "UNICODE",
         "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", "STRING", "BINBYTES", "SHORT_BINBYTES"),
        _identity,
    ),
}  # fmt: skip
ACTIONS: dict[str, Callable[[Machine, Any], None]] = {
    "MEMOIZE": Machine._memoize, "PUT": Machine._put, "BINPUT": Machine._put, "LONG_BINPUT": Machine._put,
    "GET": Machine._get, "BINGET": Machine._get, "LONG_BINGET": Machine._get,
    "GLOBAL": Machine._global, "STACK_GLOBAL": Machine._stack_global,
    "APPEND": Machine._append, "APPENDS": Machine._appends,
    "SETITEM": Machine._set_item, "SETITEMS": Machine._set_items,
    "BUILD": Machine._build, "NEWOBJ": Machine._new_object, "REDUCE": Machine._reduce, "BINPERSID": Machine._persistent,
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine._pop_mark())),
    "LIST": lambda machine, _: machine.stack.append(machine._pop_mark()),
    "TUPLE1": lambda machine, _: machine.stack.append(tuple(machine._pop(1))),
    "TUPLE2": lambda machine, _: machine.stack.append(tuple(machine._pop(2))),
    "TUPLE3": lambda machine, _: machine.stack.append(tuple(machine._pop(3))),
}  # fmt: skip
IGNORED = {"PROTO", "FRAME", "STOP"}
