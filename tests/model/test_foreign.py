"""Files that want more than to be read: nothing runs, memory stays bounded, and the error says what is wrong."""

from __future__ import annotations

import builtins
import contextlib
import os
import pickle
import pickletools
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dao_pipeline.errors import UserError
from dao_pipeline.model.foreign import LARGEST_PICKLE, Name, Opaque, Stored, TorchFile
from dao_pipeline.model.official import read_official
from tests.model.official_files import TINY, state_dict, write_run

FLOATS = b"\x00\x00\x80\x3f" * 6  # six ones


def archive(path: Path, program: bytes, compression: int = zipfile.ZIP_STORED, **blocks: bytes) -> Path:
    """A torch file with this data.pkl, and storages named by keyword."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/version", b"3\n")
        for key, data in blocks.items():
            file.writestr(f"archive/data/{key}", data)
    return path


def tensor_program(
    offset: int = 0, shape: Any = (2, 3), stride: Any = (3, 1), numel: int = 6, key: str = "a", kind: str = "Float"
) -> bytes:
    """The opcodes with which torch writes a tensor."""

    def plain(value: Any) -> bytes:
        return pickle.dumps(value, protocol=2)[2:-1]

    storage = b"(" + plain("storage") + f"ctorch\n{kind}Storage\n".encode() + plain(key) + plain("cpu")
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
        + (storage + plain(numel) + b"tQ" + plain(offset) + plain(shape) + plain(stride))
        + b"\x89ccollections\nOrderedDict\n)RtR."
    )


def test_reads_what_torch_wrote(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float64).view(4, 6)
    saved = {
        "state_dict": OrderedDict(a=base, b=base[1:, ::2].T, c=torch.nn.Parameter(torch.ones(3).half())),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "plain": [1, 2.5, "x", None, True, (1, 2), {3: "y"}, 10**30],
    }
    for protocol in (2, 4, 5):
        torch.save(saved, tmp_path / "x.pt", pickle_protocol=protocol)
        file = TorchFile(tmp_path / "x.pt")
        for name, expected in saved["state_dict"].items():
            found = file.tensor(name, file.root["state_dict"][name])
            assert torch.equal(found, expected.detach())
            assert found.is_contiguous()
        for name in ("scalar", "empty"):
            assert torch.equal(file.tensor(name, file.root[name]), saved[name])
        assert file.root["plain"] == saved["plain"]


class Evil:
    """Asks to call something when it is unpickled."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def calls(marker: Path) -> dict[str, Any]:
    """Objects that would create ``marker`` if they were unpickled."""
    line = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": Evil(os.system, f"touch {marker}"),
        "eval": Evil(builtins.eval, line),
        "exec": Evil(builtins.exec, line),
        "nested": [{"a": (1, Evil(builtins.exec, line))}],
        "getattr": Evil(getattr, Evil(__import__, "os"), "system"),
        "import": Evil(__import__, "this"),
        "subprocess": Evil(subprocess.check_output, ["touch", str(marker)]),
        "torch": Evil(torch.load, str(marker)),
    }


RAW = {
    "global and reduce": b"cposix\nsystem\n(X\x07\x00\x00\x00touch MtR.",
    "inst": b"(X\x07\x00\x00\x00touch Miposix\nsystem\n.",
    "obj": b"(cposix\nsystem\nX\x07\x00\x00\x00touch Mo.",
    "stack global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x07touch M\x85R.",
    "newobj": b"\x80\x02cposix\nsystem\nX\x07\x00\x00\x00touch M\x85\x81.",
    "newobj ex": b"\x80\x04cposix\nsystem\nX\x07\x00\x00\x00touch M\x85}\x92.",
    "build": b"\x80\x02cbuiltins\nobject\n)\x81}X\x0c\x00\x00\x00__setstate__cposix\nsystem\nsb.",
    "copyreg": b"\x80\x02ccopy_reg\n_reconstructor\n(cposix\nsystem\ncbuiltins\nobject\nNtR.",
    "chain": b"cbuiltins\ngetattr\n(cos\nsystem\nX\x08\x00\x00\x00__call__tR(X\x07\x00\x00\x00touch MtR.",
}


@pytest.mark.parametrize("name", [*calls(Path("x")), *RAW])
def test_nothing_is_called(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    program = RAW[name] if name in RAW else pickle.dumps(calls(tmp_path / "M")[name], protocol=2)
    root = TorchFile(archive(tmp_path / "x.pt", program)).root
    assert isinstance(root, Opaque | list)
    assert not (tmp_path / "M").exists()
    assert "this" not in sys.modules


def test_the_programs_are_as_bad_as_they_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the test above would prove nothing."""
    monkeypatch.chdir(tmp_path)
    for program in (RAW["global and reduce"], RAW["inst"], pickle.dumps(calls(tmp_path / "M")["exec"])):
        pickle.loads(program)
        (tmp_path / "M").unlink()


def test_hostile_parts_of_a_sound_checkpoint_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    marker = tmp_path / "M"
    folder = write_run(tmp_path / "run", state_dict(**TINY), extra={"callbacks": calls(marker)})
    assert read_official(folder / "last.ckpt").model.about.kind == "dao_p"
    torch.save(Evil(builtins.exec, f"open({str(marker)!r}, 'w')"), folder / "prop_scaler.pt")
    with pytest.raises(UserError, match="no scaler"):
        read_official(folder / "last.ckpt")
    torch.save({"state_dict": {"decoder.x": calls(marker)["exec"]}}, folder / "last.ckpt")
    with pytest.raises(UserError, match=r"not plain tensors in the state_dict: decoder\.x"):
        read_official(folder / "last.ckpt")
    assert not marker.exists()


def test_names_stay_names(tmp_path: Path) -> None:
    root = TorchFile(archive(tmp_path / "x.pt", b"cos\nsystem\n.")).root
    assert root == Name("os", "system")
    assert not callable(root)


def test_sound_tensor_program(tmp_path: Path) -> None:
    file = TorchFile(archive(tmp_path / "x.pt", tensor_program(), a=FLOATS))
    assert torch.equal(file.tensor("x", file.root), torch.ones(2, 3))


@pytest.mark.parametrize(
    "changes",
    [
        {"numel": 1 << 40},
        {"numel": 7},
        {"key": "b"},
        {"key": "../version"},
        {"kind": "Double"},
        {"offset": 1},
        {"stride": (4, 1)},
        {"stride": (0, 0), "shape": (1 << 20, 1 << 20)},
        {"stride": (0, 0), "shape": (7, 1)},
        {"stride": (1 << 40, 1)},
        {"shape": (3, 3)},
    ],
    ids=str,
)
def test_tensors_beyond_their_storage(tmp_path: Path, changes: dict[str, Any]) -> None:
    file = TorchFile(archive(tmp_path / "x.pt", tensor_program(**changes), a=FLOATS))
    assert isinstance(file.root, Stored)
    with pytest.raises(UserError, match="storage"):
        file.tensor("x", file.root)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (-1, 3)},
        {"stride": (-3, 1)},
        {"offset": -1},
        {"numel": -6},
        {"numel": 1 << 80},
        {"shape": (2.0, 3)},
        {"shape": (True, 3)},
        {"shape": [2, 3]},
        {"stride": (1,)},
        {"shape": (1,) * 9, "stride": (1,) * 9},
    ],
    ids=str,
)
def test_impossible_tensors(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"data\.pkl is damaged"):
        TorchFile(archive(tmp_path / "x.pt", tensor_program(**changes), a=FLOATS))


HASH_BOMB = b"}X\x01\x00\x00\x00x" + b"2\x86" * 200 + b"Ns."
BOMBS = {
    "bytes of 2^62": b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little") + b".",
    "text of 2^62": b"\x80\x04\x8d" + (1 << 62).to_bytes(8, "little") + b".",
    "frame of 2^62": b"\x80\x04\x95" + (1 << 62).to_bytes(8, "little") + b"N.",
    "long of 2^31": b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b".",
    "memo of 2^32": b"Nr\xff\xff\xff\xff.",
    "number of many digits": b"L" + b"9" * 100_000 + b"L\n.",
    "key that takes for ever to hash": HASH_BOMB,
    "deep": b"]" * 200_000 + b"a" * 199_999 + b".",
    "cycle": b"]q\x00h\x00a.",
    "marks": b"(" * 200_000 + b".",
}


def test_bombs(tmp_path: Path) -> None:
    """Read in another process, to measure its memory and to end it if it takes for ever."""
    for name, program in BOMBS.items():
        archive(tmp_path / f"{name}.pt", program)
    code = f"""
import pathlib, resource
from dao_pipeline.errors import UserError
from dao_pipeline.model.foreign import TorchFile
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in pathlib.Path({str(tmp_path)!r}).glob("*.pt"):
    try:
        TorchFile(path)
    except UserError:
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < 200_000  # kB


def test_archives_that_are_none(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", state_dict(**TINY))
    whole = (folder / "last.ckpt").read_bytes()
    path = tmp_path / "x.ckpt"
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="not a sound zip archive"):
            TorchFile(path)
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"torch older than 1\.6"):
        TorchFile(path)
    with pytest.raises(UserError, match="not found"):
        TorchFile(tmp_path / "nowhere.ckpt")
    with pytest.raises(UserError):
        TorchFile(tmp_path)


def test_zip_bombs_and_foreign_zips(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", b"N.", zipfile.ZIP_DEFLATED, a=bytes(1 << 24))
    with pytest.raises(UserError, match="compressed"):
        TorchFile(path)
    archive(path, b"N" * (LARGEST_PICKLE + 1))
    with pytest.raises(UserError, match=r"data\.pkl has"):
        TorchFile(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/y/data.pkl", b"N.")
    with pytest.raises(UserError, match=r"no data\.pkl"):
        TorchFile(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", b"N.")
        file.writestr("x/byteorder", b"big")
    with pytest.raises(UserError, match="little-endian"):
        TorchFile(path)
    archive(path, b"N.", a=FLOATS)
    # the directory at the end says that the storage is larger than the whole file
    data = bytearray(path.read_bytes())
    at = data.rindex(b"archive/data/a") - 46
    data[at + 20 : at + 28] = (1 << 30).to_bytes(4, "little") * 2
    path.write_bytes(data)
    with pytest.raises(UserError, match="larger than the file"):
        TorchFile(path)


def test_tensors_that_share_a_storage_cannot_multiply_it(tmp_path: Path) -> None:
    base = torch.zeros(1000)
    folder = write_run(tmp_path, {f"decoder.x{i}": base for i in range(100)})
    with pytest.raises(UserError, match="claim more bytes than the file has"):
        read_official(folder / "last.ckpt")


def test_flipped_bits_in_the_numbers_are_noticed(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pt", tensor_program(), a=FLOATS)
    data = path.read_bytes().replace(FLOATS, b"\x01" + FLOATS[1:])
    path.write_bytes(data)
    file = TorchFile(path)
    with pytest.raises(UserError, match="cannot be read"):
        file.tensor("x", file.root)


SOUND = pickle.dumps({"a": [1, 2.5, "x", (None, True), {3: {4}}], "b": OrderedDict(c=b"y")}, protocol=2)
OPCODES = st.sampled_from([op.code.encode("latin-1") for op in pickletools.opcodes])


@given(st.lists(OPCODES | st.binary(max_size=4), max_size=60).map(b"".join), st.integers(0, len(SOUND)))
@settings(max_examples=300, deadline=None)
def test_any_program_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int) -> None:
    path = tmp_path_factory.getbasetemp() / "any.pt"
    for program in (noise, SOUND[:at] + noise + SOUND[at:], tensor_program()[:-1] + noise + b"."):
        archive(path, program, a=FLOATS)
        with contextlib.suppress(UserError):
            TorchFile(path)
