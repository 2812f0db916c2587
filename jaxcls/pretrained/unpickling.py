"""An unpickler that builds only tables of tensors. It imports and calls nothing that a file names.

`pickle.Unpickler` with its own `find_class` would still allocate as much memory as a false length
or memo number says, and run the code of allowed classes on BUILD. This one knows the opcodes that
`torch.save` writes (`pickletools` describes them), and of PyTorch's functions only those that build
a tensor from a storage. It returns descriptions (`Tensor`, `Storage`), which are checked before the
numbers are read. Every other name becomes a `Placeholder`, and so does every object made with it:
trainers save options, metrics and callbacks beside the tensors.
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxcls.pretrained.dangerous_names import is_dangerous
from jaxcls.pretrained.limits import MAX_DIMENSIONS, RefusedError, excerpt

MAX_OPCODES = 2_000_000  # opcodes and copied items; a tensor needs about 30
MAX_NAME = 1000  # characters of a class or function with its module
MAX_INT = 2**80  # PyTorch's magic number has 79 bits

# Name of the storage's class in torch -> dtype of its numbers, without the byte order.
STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "c8",
    "ComplexDoubleStorage": "c16",
    "QInt8Storage": "i1",
    "QUInt8Storage": "u1",
    "QInt32Storage": "i4",
    "UntypedStorage": "u1",
}


class Storage(NamedTuple):
    """A block of numbers of one type somewhere in the file.

    Attributes:
      kind: a value of `STORAGES`.
      key: its name in the file.
      numel: the number of its elements that the pickle declares.
    """

    kind: str
    key: str
    numel: int


class Tensor(NamedTuple):
    """An unchecked view of a storage; offset and strides count elements, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Placeholder:
    """Replaces an object that is neither a tensor nor a plain value; it does nothing.

    Attributes:
      name: the name of the global that it is, or that it was made with.
      table: the items that the pickle set, as for a subclass of dict.
      is_model: whether it looks like a PyTorch module with its variables inside.
    """

    __slots__ = ("is_model", "name", "table")

    def __init__(self, name: str) -> None:
        self.name = name
        self.table: dict[Any, Any] = {}
        self.is_model = name.startswith("torch.nn.")


class _Global(NamedTuple):
    """A known name, and the function to use when the pickle calls it."""

    name: str
    build: Callable[..., Any] | None = None
    kind: str | None = None  # the dtype of a storage's class


class _Mark:
    """Marks the beginning of the arguments of a later opcode on the stack."""


_MARK = _Mark()


def unpickle(stream: io.BytesIO, storages: dict[str, Storage] | None = None) -> Any:
    """Reads one pickle, and leaves the stream at its end.

    Args:
      stream: bytes in memory, so that a false length cannot allocate more than there is.
      storages: a dict that gets every storage that the pickle refers to, by its key.

    Returns:
      None, bool, int, float, str, bytes, list, tuple, dict, `Tensor`, `Storage` or `Placeholder`,
      nested. Ordered dictionaries become plain ones, without attributes. A dictionary's key that is
      not a text, a number or None becomes a `Placeholder`.

    Raises:
      RefusedError: the pickle is cut off or damaged, or has a name that only an attack would use.
    """
    machine = _Machine({} if storages is None else storages)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, OverflowError) as error:
        raise RefusedError(f"its pickle is damaged or cut off ({excerpt(error, 120)})") from None
    return machine.result()


class _Machine:
    """The stack and memo of one pickle."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}  # a list would grow to any number in the pickle
        self._spent = 0
        self._storages = storages

    def result(self) -> Any:
        """Returns the one value that is left at the end."""
        if len(self._stack) != 1 or self._stack[0] is _MARK:
            raise RefusedError("its pickle is damaged (it does not end with one value)")
        return self._stack[0]

    def step(self, opcode: str, argument: Any) -> None:
        """Executes one opcode with the argument that follows it in the file."""
        self._spend(1)
        stack = self._stack
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                stack.append(_MARK)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4":
                # States of random generators have longer integers, which are not needed.
                stack.append(argument if abs(argument) < MAX_INT else Placeholder("builtins.int"))
            case (
                "BINFLOAT"
                | "BINUNICODE"
                | "SHORT_BINUNICODE"
                | "BINUNICODE8"
                | "BINSTRING"
                | "SHORT_BINSTRING"
                | "BINBYTES"
                | "SHORT_BINBYTES"
                | "BINBYTES8"
                | "BYTEARRAY8"
            ):
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(Placeholder("builtins.set"))
            case "FROZENSET":
                self._pop_mark()
                stack.append(Placeholder("builtins.frozenset"))
            case "TUPLE":
                stack.append(tuple(self._pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [self._pop() for _ in range(int(opcode[-1]))]
                stack.append(tuple(reversed(items)))
            case "APPEND":
                self._append([self._pop()])
            case "APPENDS" | "ADDITEMS":
                self._append(self._pop_mark())
            case "SETITEM":
                value, key = self._pop(), self._pop()
                self._set([key, value])
            case "SETITEMS":
                self._set(self._pop_mark())
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._top()
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._top()
            case "BINGET" | "LONG_BINGET":
                if argument not in self._memo:
                    raise RefusedError("its pickle is damaged (it recalls what it never stored)")
                stack.append(self._memo[argument])
            case "GLOBAL":
                module, _, name = argument.partition(" ")
                stack.append(_find(module, name))
            case "STACK_GLOBAL":
                name, module = self._pop(), self._pop()
                if not (isinstance(name, str) and isinstance(module, str)):
                    raise RefusedError("its pickle is damaged (a name that is no text)")
                stack.append(_find(module, name))
            case "POP":  # Python writes POP and POP_MARK for an object that contains itself
                stack.pop()
            case "POP_MARK":
                self._pop_mark()
            case "BINPERSID":
                stack.append(self._persistent(self._pop()))
            case "REDUCE" | "NEWOBJ":
                arguments, function = self._pop(), self._pop()
                stack.append(self._call(function, arguments))
            case "NEWOBJ_EX":
                _, arguments, function = self._pop(), self._pop(), self._pop()
                stack.append(self._call(function, arguments))
            case "BUILD":
                self._build(self._pop())
            case _:
                raise RefusedError(
                    f"its pickle uses {opcode}, which a table of tensors never needs"
                )

    def _spend(self, count: int) -> None:
        self._spent += count
        if self._spent > MAX_OPCODES:
            raise RefusedError(f"its pickle has more than {MAX_OPCODES} opcodes and copied items")

    def _call(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, Placeholder):
            return Placeholder(function.name)
        if not isinstance(function, _Global) or function.build is None:
            raise RefusedError("its pickle calls something that is not a function")
        if not isinstance(arguments, tuple):
            raise RefusedError(f"its pickle calls {function.name} without arguments")
        self._spend(len(arguments))
        # Many calls may use the same list from the memo, and each call copies it.
        self._spend(sum(len(items) for items in arguments if isinstance(items, list | tuple)))
        try:
            return function.build(*arguments)
        except TypeError:
            raise RefusedError(f"its pickle calls {function.name} with wrong arguments") from None

    def _build(self, state: Any) -> None:
        """Ignores the attributes of an object.

        PyTorch adds versions to a state dict (_metadata), on which no tensor depends.
        """
        target = self._top()
        if isinstance(target, Placeholder):
            if isinstance(state, dict) and "_modules" in state and "_parameters" in state:
                target.is_model = True
        elif not isinstance(target, dict):
            raise RefusedError("its pickle sets the state of something other than an object")

    def _persistent(self, description: Any) -> Any:
        """Returns the object for a persistent id, which is outside the pickle.

        That is a storage, or in the older format the class of a module with its source code.
        """
        match description:
            case ("module", (Placeholder() | _Global()) as kind, *_):
                return kind
        storage = _storage(description)
        other = self._storages.setdefault(storage.key, storage)
        if other.kind != storage.kind:
            raise RefusedError(f"storage {excerpt(storage.key, 40)} has two types")
        return storage

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise RefusedError("its pickle is damaged (a mark where a value belongs)")
        return value

    def _top(self) -> Any:
        if self._stack[-1] is _MARK:
            raise RefusedError("its pickle is damaged (a mark where a value belongs)")
        return self._stack[-1]

    def _pop_mark(self) -> list[Any]:
        items = []
        while (value := self._stack.pop()) is not _MARK:
            items.append(value)
        return items[::-1]

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Placeholder):
            raise RefusedError("its pickle appends to something other than a list")

    def _set(self, items: list[Any]) -> None:
        target = self._top()
        table = target.table if isinstance(target, Placeholder) else target
        if not isinstance(table, dict) or len(items) % 2:
            raise RefusedError("its pickle sets items of something other than a table")
        _fill(table, zip(items[::2], items[1::2], strict=True))


def _fill(table: dict[Any, Any], pairs: Any) -> None:
    for key, value in pairs:
        # Not tuples: hashing deeply nested tuples that repeat each other takes forever.
        plain = isinstance(key, str | int | float | bytes | None)
        table[key if plain else Placeholder(type(key).__name__)] = value


def _find(module: str, name: str) -> _Global | Placeholder:
    """Returns the replacement for a global name; nothing is imported.

    Raises:
      RefusedError: only an attack would use the name.
    """
    full = f"{module}.{name}"
    if full in _BUILDERS:
        return _Global(full, build=_BUILDERS[full])
    if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES:
        return _Global(full, kind=STORAGES[name])
    if len(full) > MAX_NAME:
        raise RefusedError(f"its pickle has a name of {len(full)} characters")
    if is_dangerous(module, name):
        raise RefusedError(
            f"its pickle names {excerpt(full)}, which no checkpoint needs and an attack would "
            "run; nothing in it was run"
        )
    return Placeholder(full)


def _storage(description: Any) -> Storage:
    """Returns the storage of a persistent id, as both of PyTorch's formats write it."""
    match description:
        case ("storage", _Global(kind=str(kind)), str(key), str(), int(numel)) | (
            "storage",
            _Global(kind=str(kind)),
            str(key),
            str(),
            int(numel),
            None,
        ) if not isinstance(numel, bool) and numel >= 0:
            return Storage(kind, key, numel)
        case ("storage", _Global(), str(), str(), int(), _):
            raise RefusedError("its storages are views of others, as in PyTorch before 0.4")
    raise RefusedError("its pickle refers to something other than a storage of numbers")


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    table: dict[Any, Any] = {}
    if not isinstance(items, list | tuple):
        raise TypeError
    pairs = [pair for pair in items if isinstance(pair, list | tuple) and len(pair) == 2]
    if len(pairs) != len(items):
        raise TypeError
    _fill(table, pairs)
    return table


def _size(dimensions: Any) -> tuple[int, ...]:
    return _integers(dimensions)


def _device(kind: Any, index: Any = None) -> str:
    if not isinstance(kind, str):
        raise TypeError
    return kind


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Tensor:
    """Builds a tensor; rest is requires_grad, hooks and metadata, which change no numbers."""
    if not isinstance(storage, Storage) or len(rest) > 3:
        raise TypeError
    (start,) = _integers((offset,))
    return Tensor(storage, start, _integers(shape), _integers(strides))


def _parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> Any:
    """Returns the tensor, or the placeholder of an unsupported kind of tensor."""
    if not isinstance(data, Tensor | Placeholder):
        raise TypeError
    return data


def _of_subclass(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """Builds a tensor of a subclass, or one with attributes."""
    if not isinstance(function, _Global | Placeholder) or not isinstance(arguments, tuple):
        raise TypeError
    known = function.name in _TENSORS
    return _TENSORS[function.name](*arguments) if known else Placeholder(function.name)


def _integers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list):
        raise TypeError
    if len(values) > MAX_DIMENSIONS:
        raise RefusedError(f"it has a tensor of more than {MAX_DIMENSIONS} dimensions")
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise TypeError
    return tuple(values)


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_BUILDERS = _TENSORS | {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch.device": _device,
    "torch._tensor._rebuild_from_type_v2": _of_subclass,
}
