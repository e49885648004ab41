"""Instances on several GPUs, which this host need not have: what a backend of a stranger is told,
and the names and labels that the server shows."""

from pathlib import Path

import pytest

from microkernel import BackendType, host
from microkernel.metrics.models import labels_of
from microkernel.models.loader import Loader, LoaderSettings, Offer

BACKEND = """
from microkernel import Backend, Instance, Model


class Told(Instance):
    def __init__(self, placement, trace):
        self._placement, self._trace = placement, trace

    def execute(self, batch):
        place = self._placement
        with self._trace.open("a") as file:
            file.write(f"{place.name} {place.kind} {place.device_id}\\n")
        return batch.split([])


class ToldModel(Model):
    def __init__(self, files):
        self._files = files

    def instance(self, placement):
        return Told(placement, self._files / "trace")


class ToldBackend(Backend):
    def load(self, config, files):
        return ToldModel(files)
"""
CONFIG = """
backend: "told"
max_batch_size: 1
input { name: "X" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "Y" data_type: TYPE_INT32 dims: [ 1 ] }
instance_group { count: 2 kind: KIND_GPU gpus: [ {gpus} ] }
model_warmup {
  name: "s" batch_size: 1
  inputs { key: "X" value { data_type: TYPE_INT32 dims: [ 1 ] zero_data: true } }
}
"""


@pytest.mark.parametrize("kind", ["process", "instance", "thread"])
@pytest.mark.parametrize(("gpus", "label"), [((0, 2), None), ((2,), "GPU-2")])
async def test_every_gpu_that_is_listed_has_its_instances(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    gpus: tuple[int, ...],
    label: str | None,
) -> None:
    (tmp_path / "told_backend.py").write_text(BACKEND)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(host, "gpus", lambda: 3)
    directory = tmp_path / "m"
    (directory / "1").mkdir(parents=True)
    worker = f'parameters {{ key: "WORKER" value {{ string_value: "{kind}" }} }}'
    text = CONFIG.replace("{gpus}", ", ".join(map(str, gpus))) + worker
    (directory / "config.pbtxt").write_text(text)
    backend = BackendType("told", "told_backend:ToldBackend", gpu=True)
    loader = Loader([Offer(backend, None)], LoaderSettings())
    try:
        model = await loader.load(loader.read(directory), directory, 1)
        await model.stop()
    finally:
        await loader.close()
    lines = (directory / "1" / "trace").read_text().split("\n")[:-1]
    wanted = [f"m_0_{index} KIND_GPU {gpu}" for index in (0, 1) for gpu in gpus]
    assert sorted(lines) == sorted(wanted)
    labels = labels_of(model.config, 1, ["GPU-0", "GPU-1", "GPU-2"])
    assert labels.get("gpu_uuid") == label
