"""Label files."""

from pathlib import Path

import pytest

from microkernel.backend import BackendType
from microkernel.config.model import ModelConfig, ModelOutput
from microkernel.errors import InvalidArgument, Unsupported
from microkernel.models.loader import _read_files
from microkernel.repository.labels import read_labels
from microkernel.workers.contract import Hosted


def config(name: str) -> ModelConfig:
    labelled = ModelOutput(name="A", data_type="TYPE_FP32", dims=(4,), label_filename=name)
    return ModelConfig(
        name="m", output=(labelled, ModelOutput(name="B", data_type="TYPE_FP32", dims=(4,)))
    )


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (b"", ()),
        (b"a", ("a",)),
        (b"a\nb\n", ("a", "b")),
        (b"a\n\nb", ("a", "", "b")),
        (b"\n", ("",)),
        (b"a b\r\nc\n", ("a b", "c")),
        ("caf\u00e9\u2028\x0b".encode(), ("caf\u00e9\u2028\x0b",)),
        (b"\xe9", ("\udce9",)),
    ],
)
def test_a_label_a_line(tmp_path: Path, content: bytes, labels: tuple[str, ...]) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    assert read_labels(config("labels.txt"), tmp_path) == {"A": labels}


def test_outputs_without_a_file(tmp_path: Path) -> None:
    assert read_labels(config(""), tmp_path) == {}


def test_a_file_in_a_folder_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "labels.txt").write_text("a\n")
    assert read_labels(config("1/../1/labels.txt"), tmp_path) == {"A": ("a",)}


@pytest.mark.parametrize("name", ["../labels.txt", "/etc/hostname", "1/../../labels.txt", "link"])
def test_a_path_out_of_the_model_is_refused(tmp_path: Path, name: str) -> None:
    model = tmp_path / "m"
    model.mkdir()
    (tmp_path / "labels.txt").write_text("a\n")
    (model / "link").symlink_to(tmp_path / "labels.txt")
    with pytest.raises(Unsupported) as caught:
        read_labels(config(name), model)
    assert str(caught.value).startswith(f"label file '{name}' of output 'A' lies outside")


@pytest.mark.parametrize("name", ["absent.txt", "folder"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidArgument) as caught:
        read_labels(config(name), tmp_path)
    assert str(caught.value).startswith(f"label file '{name}' of output 'A' cannot be read: ")


def test_labels_that_a_version_carries_give_way_to_files(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("file")
    asked: list[Path] = []

    def carried(config: ModelConfig, files: Path) -> dict[str, tuple[str, ...]]:
        asked.append(files)
        return {"A": ("carried",), "B": ("carried",)}

    backend = BackendType("odd", "odd:make", labels=carried)
    hosted = Hosted(backend, None, "m", 1, tmp_path / "1")
    found = _read_files(config("labels.txt"), tmp_path, hosted)
    assert found.labels == {"A": ("file",), "B": ("carried",)}
    assert asked == [tmp_path / "1"]
