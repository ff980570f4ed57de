"""Reads pickles without running them.

A pickle is a program that may import and call anything. The interpreter here knows only the operations that build
dicts, lists, tuples, numbers, text and descriptions of tensors; it has none that imports or calls. What a file
names beyond that is refused by name, or, for the few classes that checkpoints are known to hold, kept as an
:class:`Inert` record of its attributes.
"""

import math
import pickletools
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

import torch

from beit.checkpoints.reading import pickle_names as names
from beit.config.values import counted

MAX_DIMENSIONS = 8
MAX_OPERATIONS = 2**20
"""Steps of a pickle, and values that they copy; a training checkpoint of BEiT-large takes some 60,000."""
MAX_KEY = 2**60
"""Of whole numbers as keys: larger ones can be chosen so that all have one hash, and a dict becomes slow."""
MAX_NUMBER = 2**127
MAX_SIZE = 2**48


class Refused(ValueError):
    """Why a file is not read, in a few words."""


class Storage(NamedTuple):
    """Where the numbers of a tensor lie in the file, or will."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class StoredTensor(NamedTuple):
    """A tensor that has not been read: a view of a storage. Checked to lie within it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.storage.dtype.itemsize


@dataclass(eq=False)
class Inert:
    """An object that the file describes and that was never made: its class by name, its attributes."""

    name: str
    attributes: dict[str, Any] = field(default_factory=dict)


class _Global(NamedTuple):
    """A class or function that the file names."""

    name: str


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = {"BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_VALUES |= {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINBYTES", "SHORT_BINBYTES"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(stream: IO[bytes]) -> Any:
    """The value of the pickle at the position of `stream`, which is left behind it.

    Raises :class:`Refused`. Time and memory are bounded by :data:`MAX_OPERATIONS` and by what `stream` holds.
    """
    machine = _Machine()
    try:
        for operation, argument, _ in pickletools.genops(stream):
            if operation.name == "STOP":
                return machine.pop(1)[0]
            machine.step(operation.name, argument)
    except Refused:
        raise
    except (ValueError, LookupError, TypeError, OverflowError, Warning) as error:
        raise Refused(f"its pickle is damaged ({str(error)[:80]})") from None
    raise Refused("its pickle has no end")


class _Machine:
    """The stack of a pickle, its marks and its memory of values.

    Values refer to one another, so that a short pickle holds a tree without end: nothing here may print a value, or
    walk or copy one without `charge`.
    """

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.left = MAX_OPERATIONS

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise Refused(f"its pickle takes more than {MAX_OPERATIONS:,} steps")

    def charge(self, *values: Any) -> None:
        """Count a step for each member of `values`, which will be walked or copied."""
        self.spend(sum(len(value) for value in values if isinstance(value, list | tuple | dict)))

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        self.spend(1)
        if name in _VALUES:
            if type(argument) is int and abs(argument) > MAX_NUMBER:
                raise Refused("it holds a number of more than 128 bits")
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            stack.append(tuple(self.pop(_TUPLES[name])))
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name == "MARK":
            self.marks.append(len(stack))
        else:
            self.build(name, argument)

    def build(self, name: str, argument: Any) -> None:
        """The operations that put values together."""
        match name:
            case "PROTO" | "FRAME":
                pass
            case "EMPTY_DICT":
                self.stack.append({})
            case "EMPTY_LIST":
                self.stack.append([])
            case "TUPLE":
                self.stack.append(tuple(self.pop_marked()))
            case "APPEND" | "APPENDS":
                values = self.pop(1) if name == "APPEND" else self.pop_marked()
                self.top(list).extend(values)
            case "SETITEM" | "SETITEMS":
                values = self.pop(2) if name == "SETITEM" else self.pop_marked()
                self.top(dict).update(_items(zip(values[::2], values[1::2], strict=True)))
            case "GLOBAL":
                self.stack.append(_named(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                module, named = self.pop(2)
                if not isinstance(module, str) or not isinstance(named, str):
                    raise Refused("its pickle names a class by something else than text")
                self.stack.append(_named(f"{module}.{named}"))
            case "REDUCE" | "NEWOBJ":
                maker, arguments = self.pop(2)
                if not isinstance(maker, _Global) or not isinstance(arguments, tuple):
                    raise Refused(f"its pickle calls a {type(maker).__name__}")
                self.charge(arguments)
                self.charge(*arguments)
                self.stack.append(_made(maker, arguments))
            case "BUILD":
                self.set_state(self.pop(1)[0])
            case "BINPERSID":
                self.charge(self.stack[-1])
                self.stack.append(_persistent(self.pop(1)[0]))
            case _:
                raise Refused(f"its pickle uses {name}, which no checkpoint needs")

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise Refused("its pickle is damaged (empty stack)")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def pop_marked(self) -> list[Any]:
        return self.pop(len(self.stack) - self.marks.pop())

    def top(self, wanted: type) -> Any:
        if type(self.stack[-1]) is not wanted:
            raise Refused(f"its pickle fills a {type(self.stack[-1]).__name__} like a {wanted.__name__}")
        return self.stack[-1]

    def set_state(self, state: Any) -> None:
        """Attributes of an object. Those of a dict (`_metadata` of a state dict) are of no interest."""
        target = self.stack[-1]
        self.charge(state)
        if isinstance(target, Inert) and isinstance(state, dict):
            target.attributes.update(state)
        elif not isinstance(target, Inert | dict):
            raise Refused(f"its pickle sets attributes of a {type(target).__name__}")


def _named(name: str) -> _Global:
    if name not in names.ALLOWED:
        raise Refused(
            f"it holds {name[:80]!r}, which is neither a tensor nor part of a known checkpoint; save its weights "
            f"alone, torch.save(model.state_dict(), FILE), where you trust it"
        )
    return _Global(name)


def _made(maker: _Global, arguments: tuple[Any, ...]) -> Any:
    """What calling `maker` would give, for the makers that are known."""
    if maker.name in (names.TENSOR, names.OLD_TENSOR):
        return _tensor(*arguments[:4])
    if maker.name in names.PARAMETERS:
        if not arguments or not isinstance(arguments[0], StoredTensor):
            raise Refused("it holds a parameter that is no tensor")
        return arguments[0]
    if maker.name == names.DEFAULT_DICT:  # made of what it calls for a new key; its items follow
        return {}
    if maker.name in (names.DICT, names.SIZE):
        values = arguments[0] if arguments else ()
        if not isinstance(values, list | tuple):  # text is not charged
            raise Refused(f"it makes a {maker.name} of a {type(values).__name__}")
        return _items(values) if maker.name == names.DICT else tuple(values)
    return Inert(maker.name)


def _items(pairs: Any) -> dict[Any, Any]:
    """A dict of (key, value) pairs. Keys are plain, because hashing nested tuples recurses without end."""
    items = {}
    for key, value in pairs:
        if not (key is None or isinstance(key, str) or (isinstance(key, int) and abs(key) < MAX_KEY)):
            raise Refused(f"it holds a dict with a {type(key).__name__} as a key")
        items[key] = value
    return items


def _persistent(value: Any) -> Any:
    """A storage, or in the older container also a class with its source code, which is left unread."""
    match value:
        case ("storage", _Global(name), str(key), _, int(numel), *view) if name in names.STORAGES:
            if numel < 0 or any(part is not None for part in view):
                raise Refused(f"its storage {key[:40]!r} is of an unknown kind")
            return Storage(key, names.STORAGES[name], numel)
        case ("module", _Global() as named, _, _):
            return named
    raise Refused("it refers to something that is neither a storage nor a module")


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise Refused("it holds a tensor without a storage")
    if not isinstance(shape, tuple) or not isinstance(stride, tuple) or len(shape) != len(stride):
        raise Refused("it holds a tensor without a shape")
    sizes = (offset, *shape, *stride)
    if len(shape) > MAX_DIMENSIONS or not all(type(value) is int and 0 <= value < MAX_SIZE for value in sizes):
        raise Refused("it holds a tensor of an impossible shape")
    count = math.prod(shape)
    if not count and math.prod(size for size in shape if size) >= MAX_SIZE:
        raise Refused("it holds a tensor of an impossible shape")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if count and (last >= storage.numel or count > storage.numel):
        raise Refused(f"it holds a tensor of shape {shape} in a storage of {counted(storage.numel, 'number')}")
    return StoredTensor(storage, offset, shape, stride)
