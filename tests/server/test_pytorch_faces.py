"""Networks that people use, as they come: the three of facenet-pytorch, with a configuration and
without, give what their authors' own classes give."""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from server_harness import Running

ROOT = Path(__file__).parents[2]
PACKAGES = ("facenet_pytorch", "torch", "tritonclient")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

Array = np.ndarray[Any, Any]

SIDES = {"face_proposals": 40, "face_refinement": 24, "face_points": 48}
AUTHORS = {"face_proposals": "PNet", "face_refinement": "RNet", "face_points": "ONet"}


def package() -> Path:
    spec = importlib.util.find_spec("facenet_pytorch")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="module")
def authors() -> Any:
    """The authors' own classes. Beside them stands code that cuts faces out of pictures, with
    packages that need not be installed."""
    names = ("authors", "authors.utils", "authors.utils.detect_face")
    made = {name: ModuleType(name) for name in names}
    cutting: Any = made["authors.utils.detect_face"]
    cutting.detect_face = cutting.extract_face = None
    source = package() / "models" / "mtcnn.py"
    spec = importlib.util.spec_from_file_location("authors.mtcnn", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        for name, stand_in in made.items():
            patch.setattr(stand_in, "__path__", [], raising=False)
            patch.setitem(sys.modules, name, stand_in)
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pictures() -> dict[str, Array]:
    generator = np.random.default_rng(0)
    return {
        name: generator.uniform(-1, 1, (5, 3, side, side)).astype(np.float32)
        for name, side in SIDES.items()
    }


@pytest.fixture(scope="module")
def expected(authors: Any, pictures: dict[str, Array]) -> dict[str, dict[str, Array]]:
    """What the authors' classes give for the first two and the other three pictures."""
    import torch

    found = {}
    for name, kind in AUTHORS.items():
        network = getattr(authors, kind)()
        parts = [torch.from_numpy(part) for part in np.split(pictures[name], [2])]
        with torch.inference_mode():
            results = [torch.cat(r).numpy() for r in zip(*map(network, parts), strict=True)]
        names = ("boxes", "points")[: len(results) - 1]
        found[name] = dict(zip(names, results, strict=False)) | {"score": results[-1][:, 1]}
    return found


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., Running]
) -> Running:
    """Each network with the configuration of the examples, and as `bare_...` with none."""
    folder = tmp_path_factory.mktemp("faces") / "models"
    sys.path.append(str(ROOT / "examples"))
    prepare = importlib.import_module("prepare")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        prepare.prepare_faces(folder)
    for name in SIDES:
        file = folder / name / "1" / "model.pt"
        prepare.place(file, folder / f"bare_{name}" / "1" / "model.pt")
        config = ROOT / "examples" / "repository" / name / "config.pbtxt"
        prepare.place(config, folder / name / "config.pbtxt")
    return start_server(folder)


def ask(server: Running, protocol: str, model: str, pictures: Array) -> dict[str, Array]:
    kind: Any = importlib.import_module(f"tritonclient.{protocol}")
    with kind.InferenceServerClient(
        server.http_url if protocol == "http" else server.grpc_url
    ) as client:
        metadata = client.get_model_metadata(model)
        entry = metadata["inputs"][0] if protocol == "http" else metadata.inputs[0]
        name = entry["name"] if protocol == "http" else entry.name
        tensor = kind.InferInput(name, list(pictures.shape), "FP32")
        tensor.set_data_from_numpy(pictures)
        result = client.infer(model, [tensor])
        listed = metadata["outputs"] if protocol == "http" else metadata.outputs
        names = [output["name"] if protocol == "http" else output.name for output in listed]
        return {name: result.as_numpy(name) for name in names}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("name", SIDES)
def test_a_network_gives_what_its_authors_own_class_gives(
    server: Running,
    pictures: dict[str, Array],
    expected: dict[str, dict[str, Array]],
    name: str,
    bare: bool,
    protocol: str,
) -> None:
    model = f"bare_{name}" if bare else name
    parts = [
        ask(server, protocol, model, part) for part in (pictures[name][:2], pictures[name][2:])
    ]
    assert set(parts[0]) == set(expected[name])
    for output, right in expected[name].items():
        found = np.concatenate([part[output] for part in parts])
        scores_of_one = output == "score" and not bare and name != "face_proposals"
        assert found.shape == ((5, 1) if scores_of_one else right.shape)
        np.testing.assert_allclose(found.reshape(right.shape), right, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("face_proposals", {"boxes": [-1, 4, -1, -1], "score": [-1, -1, -1]}),
        ("face_refinement", {"boxes": [-1, 4], "score": [-1]}),
        ("face_points", {"boxes": [-1, 4], "points": [-1, 10], "score": [-1]}),
    ],
)
def test_without_a_configuration_outputs_are_called_by_their_fields(
    server: Running, name: str, shapes: dict[str, list[int]]
) -> None:
    outputs = server.get(f"/v2/models/bare_{name}").json["outputs"]
    assert {entry["name"]: entry["shape"] for entry in outputs} == shapes
