"""Trace files: the records, when which file is written, and disks that do not take them."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from microkernel import DATA_TYPES, Tensor, Trace, TracedTensor
from microkernel.tracing.files import FileSink
from microkernel.tracing.records import text
from microkernel.tracing.writer import Closed, Ended


def trace(number: int = 1, group: int = 1, **more: Any) -> Trace:
    return Trace(number, "m", 2, group=group, timestamps=[("REQUEST_START", number)], **more)


def records(made: Trace) -> Any:
    return json.loads(f"[{text(made)}]")


def ids(file: Path) -> list[int]:
    return [record["id"] for record in json.loads(file.read_text()) if "model_name" in record]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_trace_is_a_header_and_its_marks_in_order() -> None:
    made = Trace(7, "m", 2, timestamps=[("B", 20), ("A", 10)])
    assert records(made) == [
        {"id": 7, "model_name": "m", "model_version": 2},
        {"id": 7, "timestamps": [{"name": "A", "ns": 10}]},
        {"id": 7, "timestamps": [{"name": "B", "ns": 20}]},
    ]


def test_children_follow_their_parent() -> None:
    child = Trace(8, "c", 1, "r", parent=7, timestamps=[("A", 5)])
    made = Trace(7, "m", 2, 'say "hi"', children=[child])
    assert records(made) == [
        {"id": 7, "model_name": "m", "model_version": 2, "request_id": 'say "hi"'},
        {"id": 8, "model_name": "c", "model_version": 1, "request_id": "r", "parent_id": 7},
        {"id": 8, "timestamps": [{"name": "A", "ns": 5}]},
    ]


@pytest.mark.parametrize(
    ("array", "dtype", "data"),
    [
        (np.array([[1, -2]], np.int32), "INT32", "1,-2"),
        (np.array([[200, 7]], np.uint8), "UINT8", "200,7"),
        (np.array([[True, False]]), "BOOL", "1,0"),
        (np.array([[1.0, 0.1]], np.float32), "FP32", "1,0.1"),
        (np.array([[np.nan, -np.inf]]), "FP64", "nan,-inf"),
        (np.array([[1, 2]], np.float16), "FP16", ""),
        (np.array([[b"a,b", b"\xff"]], np.object_), "BYTES", '"a,b","\\xff"'),
    ],
)
def test_a_tensor_is_text(array: Any, dtype: str, data: str) -> None:
    made = Trace(1, "m", 1, tensors=[TracedTensor("T", Tensor.from_numpy("X", array))])
    assert records(made)[1] == {
        "id": 1,
        "activity": "T",
        "tensor": {"name": "X", "data": data, "shape": "1,2", "dtype": dtype},
    }


@pytest.mark.parametrize("datatype", ["INT32", "BYTES", "BF16"])
def test_data_that_is_not_of_its_type_is_left_out(datatype: str) -> None:
    tensor = Tensor("X", DATA_TYPES[datatype], (1,), b"\x01\x02\x03\x04\x05")
    made = records(Trace(1, "m", 1, tensors=[TracedTensor("T", tensor)]))
    assert made[1]["tensor"]["data"] == ""


@given(st.text(), st.text(), st.lists(st.tuples(st.text(), st.integers(1))))
def test_every_trace_is_valid_json(name: str, number: str, marks: list[tuple[str, int]]) -> None:
    made = records(Trace(1, name, 1, number, timestamps=marks))
    assert made[0]["model_name"] == name
    assert len(made) == 1 + len(marks)


def test_a_large_tensor_is_written_whole() -> None:
    tensor = Tensor.from_numpy("X", np.arange(10_000, dtype=np.int64))
    made = records(Trace(1, "m", 1, tensors=[TracedTensor("T", tensor)]))
    assert made[1]["tensor"]["data"] == ",".join(map(str, range(10_000)))


def test_one_file_in_the_end(tmp_path: Path) -> None:
    sink = FileSink(str(tmp_path / "t"))
    for number in (1, 2, 3):
        sink.write(Ended(trace(number, group=number)))
    assert names(tmp_path) == []
    sink.close()
    assert names(tmp_path) == ["t"]
    assert ids(tmp_path / "t") == [1, 2, 3]


def test_no_traces_no_file(tmp_path: Path) -> None:
    FileSink(str(tmp_path / "t")).close()
    assert names(tmp_path) == []


def test_an_indexed_file_every_few_traces_and_one_for_the_rest(tmp_path: Path) -> None:
    sink = FileSink(str(tmp_path / "t"))
    for number in range(1, 6):
        sink.write(Ended(trace(number), log_frequency=2))
    assert names(tmp_path) == ["t.0", "t.1"]
    sink.close()
    assert [ids(tmp_path / f"t.{n}") for n in range(3)] == [[1, 2], [3, 4], [5]]
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(("indexed", "name"), [(True, "t.0"), (False, "t")])
def test_a_group_that_is_closed_is_written(tmp_path: Path, indexed: bool, name: str) -> None:
    sink = FileSink(str(tmp_path / "t"))
    sink.write(Ended(trace(1, group=1)))
    sink.write(Ended(trace(2, group=2)))
    sink.write(Closed(1, indexed))
    sink.write(Closed(1, indexed))
    assert names(tmp_path) == [name]
    assert ids(tmp_path / name) == [1]
    sink.close()
    assert 2 in ids(tmp_path / "t")


def test_what_must_not_be_kept_is_written_early_and_the_file_is_always_valid(
    tmp_path: Path,
) -> None:
    sink = FileSink(str(tmp_path / "t"), most_buffered=100)
    seen = []
    for number in range(1, 9):
        sink.write(Ended(trace(number)))
        seen.append(ids(tmp_path / "t") if names(tmp_path) else [])
    sink.close()
    assert seen[3] == [1, 2, 3, 4]
    assert seen[4] == [1, 2, 3, 4]
    assert ids(tmp_path / "t") == list(range(1, 9))


def test_an_old_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("x" * 10_000)
    sink = FileSink(str(tmp_path / "t"))
    sink.write(Ended(trace(1)))
    sink.close()
    assert ids(tmp_path / "t") == [1]


class FullDisk:
    """A raw file that takes `room` bytes and no more."""

    def __init__(self, path: Path, room: int) -> None:
        self._file = path.open("wb", buffering=0)
        self.room = room

    def write(self, data: memoryview) -> int:
        here = self._file.tell()
        fits = min(len(data), self.room - here)
        if fits <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data[:fits])

    def seek(self, position: int) -> int:
        return self._file.seek(position)

    def truncate(self, size: int) -> int:
        return self._file.truncate(size)

    def close(self) -> None:
        self._file.close()


def test_a_full_disk_costs_traces_is_told_once_and_leaves_the_file_valid(tmp_path: Path) -> None:
    file = tmp_path / "t"
    sink = FileSink(str(file), most_buffered=1)
    disk: Any = FullDisk(file, room=3 * len(text(trace(1))))
    sink._array._stream = disk
    with capture_logs() as lines:
        for number in range(1, 9):
            sink.write(Ended(trace(number)))
            assert ids(file) == list(range(1, min(number, 2) + 1))
    assert [line["event"] for line in lines] == ["traces are lost"]
    assert "No space left" in lines[0]["reason"]
    disk.room = 10**6
    sink.write(Ended(trace(9)))
    sink.close()
    assert ids(file) == [1, 2, 9]


@pytest.mark.parametrize("frequency", [0, 1])
def test_a_folder_that_is_missing_is_told_once(tmp_path: Path, frequency: int) -> None:
    sink = FileSink(str(tmp_path / "absent" / "t"), most_buffered=1)
    with capture_logs() as lines:
        for number in range(3):
            sink.write(Ended(trace(number), frequency))
        sink.close()
    assert [line["event"] for line in lines] == ["traces are lost"]
