"""Tensors from a torch file that somebody else wrote, without running anything that stands in it.

A torch file is a zip archive with ``data.pkl``, a pickle, and one raw block of numbers per storage. A pickle is a
program for a small stack machine, and ``pickle.load`` is unsafe because that machine may import any name and call
it. Here the program is only read: ``pickletools.genops`` of the standard library splits the bytes into opcodes,
and the loop below keeps a stack of plain Python values. It has no way to import or call anything: a global is the
pair of strings ``Name``, and what calling it would have made is the record ``Opaque``. Three names are known,
because tensors are written with them; for these a record is made by code of this module. ``pickle`` is not used.

Memory is bounded by the size of the file: archives must be stored uncompressed, as torch writes them; the entries
together must not be larger than the file; a tensor may not have more elements than its storage, and a storage not
more than its entry. The pickle, a byte of which may cost a hundred in memory, must be small (``LARGEST_PICKLE``).
Keys of dictionaries that are no plain values are left out, as hashing nested tuples can take for ever.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dao_pipeline.errors import UserError

LARGEST_PICKLE = 4 << 20
"""Bytes of data.pkl; that of DAO-G with its optimiser takes about 0.2 MB."""

LARGEST_RANK = 8
"""Dimensions of a tensor."""

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Any] = {"EMPTY_LIST": list, "EMPTY_SET": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
"""Sets become lists: nothing is hashed, and nobody asks for them."""
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Name(NamedTuple):
    """A global that a pickle asks for. It is never looked up."""

    module: str
    name: str


@dataclass(eq=False, slots=True)
class Opaque:
    """What calling ``maker`` would have made: nothing but its state, if it was given one."""

    maker: Any
    state: Any = None


class Storage(NamedTuple):
    """A block of numbers in the archive: entry data/``key`` with ``numel`` numbers."""

    dtype: torch.dtype
    key: str
    numel: int


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor that is still in the file."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.storage.dtype.itemsize


class TorchFile:
    """A torch file: ``root`` is what was saved, with ``Stored`` in the place of tensors; see the module's text.

    Raises UserError for anything but a sound archive as torch (1.6 or later) writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.size = path.stat().st_size
            with zipfile.ZipFile(path) as archive:
                self._entries = self._checked(archive.infolist())
                pickles = [name for name in self._entries if name.endswith("/data.pkl") and name.count("/") == 1]
                if len(pickles) != 1:
                    raise self._error("it has no data.pkl, so torch did not write it")
                self._prefix = pickles[0].removesuffix("data.pkl")
                info = self._entries[pickles[0]]
                if info.file_size > LARGEST_PICKLE:
                    raise self._error(f"its data.pkl has {info.file_size} bytes, more than {LARGEST_PICKLE}")
                order = self._entries.get(self._prefix + "byteorder")
                if order is not None and archive.read(order) != b"little":
                    raise self._error("its numbers are not little-endian")
                program = archive.read(info)
        except FileNotFoundError:
            raise UserError(f"{path}: not found; correct the path.") from None
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
            raise self._error(
                f"not a sound zip archive ({error}); if torch older than 1.6 wrote it, load and save it again "
                "with a newer one"
            ) from error
        try:
            self.root = _read(program)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise self._error(f"its data.pkl is damaged ({type(error).__name__}: {error})") from error

    def _checked(self, entries: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise self._error(f"entry {entry.filename!r} is compressed, which torch never does")
        if sum(entry.file_size for entry in entries) > self.size:
            raise self._error("its entries together are larger than the file")
        found = {entry.filename: entry for entry in entries}
        if len(found) != len(entries):
            raise self._error("two entries have the same name")
        return found

    def _error(self, problem: str) -> UserError:
        return UserError(f"{self.path}: {problem}. Fetch the file again, from a source that you trust.")

    def check(self, name: str, tensor: Stored) -> None:
        """Raise UserError unless every element of a tensor lies inside its storage, and that in the archive."""
        storage, shape, stride = tensor.storage, tensor.shape, tensor.stride
        entry = self._entries.get(f"{self._prefix}data/{storage.key}")
        if entry is None or entry.file_size != storage.numel * storage.dtype.itemsize:
            raise self._error(f"{name}: storage {storage.key!r} is missing or has another size than declared")
        numel = math.prod(shape)
        last = tensor.offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if numel > storage.numel or (numel > 0 and last >= storage.numel):
            raise self._error(f"{name}: shape {shape} with strides {stride} reaches beyond its storage")

    def tensor(self, name: str, tensor: Stored) -> Tensor:
        """Read a tensor, contiguous, on the CPU. Raises UserError as ``check`` does, or if the file is damaged."""
        self.check(name, tensor)
        storage = tensor.storage
        if not storage.numel:
            return torch.empty(tensor.shape, dtype=storage.dtype)
        try:
            with zipfile.ZipFile(self.path) as archive:
                numbers = bytearray(archive.read(f"{self._prefix}data/{storage.key}"))
        except (OSError, zipfile.BadZipFile, EOFError) as error:
            raise self._error(f"{name}: its numbers cannot be read ({error})") from error
        flat = torch.frombuffer(numbers, dtype=storage.dtype)
        return flat.as_strided(tensor.shape, tensor.stride, tensor.offset).clone(
            memory_format=torch.contiguous_format
        )


@dataclass
class _Machine:
    """The stack, the stacks below each mark, and the memo."""

    stack: list[Any] = field(default_factory=list)
    below: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop_mark(self) -> list[Any]:
        """Everything above the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self, count: int) -> tuple[Any, ...]:
        """The last ``count`` values, in order."""
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        return items


def _read(program: bytes) -> Any:
    """What a pickle describes. Raises ValueError, TypeError, IndexError or KeyError if it is damaged."""
    m = _Machine()
    for opcode, arg, _ in pickletools.genops(io.BytesIO(program)):
        op = opcode.name
        if op == "STOP":
            return m.stack[-1]
        _step(m, op, arg)
    raise ValueError("it has no end")


def _step(m: _Machine, op: str, arg: Any) -> None:
    if op in _VALUES:
        m.stack.append(arg)
    elif op in _CONSTANTS:
        m.stack.append(_CONSTANTS[op])
    elif op in _EMPTY:
        m.stack.append(_EMPTY[op]())
    elif op in ("PUT", "BINPUT", "LONG_BINPUT"):
        m.memo[arg] = m.stack[-1]
    elif op == "MEMOIZE":
        m.memo[len(m.memo)] = m.stack[-1]
    elif op in ("GET", "BINGET", "LONG_BINGET"):
        m.stack.append(m.memo[arg])
    elif op == "MARK":
        m.below.append(m.stack)
        m.stack = []
    elif op == "POP_MARK" or (op == "POP" and not m.stack):
        m.pop_mark()
    elif op == "POP":
        m.stack.pop()
    elif op == "DUP":
        m.stack.append(m.stack[-1])
    elif op in _TUPLES:
        m.stack.append(m.pop(_TUPLES[op]))
    elif op == "TUPLE":
        items = m.pop_mark()
        m.stack.append(tuple(items))
    elif op in ("LIST", "FROZENSET"):
        items = m.pop_mark()
        m.stack.append(items)
    elif op == "DICT":
        items = m.pop_mark()
        m.stack.append({})
        _fill(m.stack[-1], items)
    elif op == "APPEND":
        _extend(m.stack[-2], m.pop(1))
    elif op in ("APPENDS", "ADDITEMS"):
        items = m.pop_mark()
        _extend(m.stack[-1], items)
    elif op == "SETITEM":
        items = list(m.pop(2))
        _fill(m.stack[-1], items)
    elif op == "SETITEMS":
        items = m.pop_mark()
        _fill(m.stack[-1], items)
    elif op == "BINPERSID":
        m.stack.append(_storage(*m.pop(1)))
    elif op == "BUILD":
        (state,) = m.pop(1)
        if isinstance(m.stack[-1], Opaque):
            m.stack[-1].state = state
    elif op not in ("PROTO", "FRAME"):
        made = _made(m, op, arg)
        m.stack.append(made)  # made first: it may have left the stack of a mark


def _made(m: _Machine, op: str, arg: Any) -> Any:
    """What the opcodes for globals and calls leave on the stack: names and records."""
    if op == "GLOBAL":
        return Name(*arg.split(" ", 1))
    if op == "STACK_GLOBAL":
        module, name = m.pop(2)
        return Name(str(module), str(name)) if type(module) is type(name) is str else Opaque(None)
    if op == "INST":
        m.pop_mark()
        return Opaque(Name(*arg.split(" ", 1)))
    if op == "OBJ":
        return Opaque(m.pop_mark()[0])
    if op == "NEWOBJ_EX":
        return Opaque(m.pop(3)[0])
    if op in ("REDUCE", "NEWOBJ"):
        maker, args = m.pop(2)
        if maker == ("collections", "OrderedDict"):
            return {}
        if maker == ("torch._utils", "_rebuild_parameter"):
            return args[0]
        if maker == ("torch._utils", "_rebuild_tensor_v2"):
            return _stored(*args[:4])
        return Opaque(maker)
    raise ValueError(f"opcode {op} has no place in a torch file")


def _extend(target: Any, items: Any) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Opaque):
        raise TypeError(f"nothing can be appended to {type(target).__name__}")


def _fill(target: Any, items: list[Any]) -> None:
    if isinstance(target, dict):
        pairs = zip(items[::2], items[1::2], strict=True)
        target.update((k, v) for k, v in pairs if type(k) in (str, int, float, bool, bytes, Name))
    elif not isinstance(target, Opaque):
        raise TypeError(f"nothing can be stored in {type(target).__name__}")


def _storage(reference: Any) -> Any:
    """The storage that a persistent id ('storage', type, key, location, numel) names."""
    if type(reference) is not tuple or len(reference) != 5 or reference[0] != "storage":
        raise ValueError("a persistent id is no storage")
    _, kind, key, _, numel = reference
    if type(key) is not str or not _is_count(numel):
        raise ValueError("a storage has no name or no size")
    if type(kind) is not Name or kind.module != "torch" or kind.name not in _DTYPES:
        return Opaque(kind)
    return Storage(_DTYPES[kind.name], key, numel)


def _stored(storage: Any, offset: Any, shape: Any, stride: Any) -> Any:
    if not isinstance(storage, Storage):
        return Opaque(None)
    if type(shape) is not tuple or type(stride) is not tuple or not len(shape) == len(stride) <= LARGEST_RANK:
        raise ValueError("a tensor's shape and strides do not agree")
    if not all(_is_count(n) for n in (offset, *shape, *stride)):
        raise ValueError("a tensor's offset, shape and strides must be whole numbers from 0 to 2^48")
    return Stored(storage, offset, shape, stride)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48
