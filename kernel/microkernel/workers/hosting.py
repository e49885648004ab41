"""A backend in a worker: from the name of its factory to loaded models and instances."""

from dataclasses import asdict
from typing import Any

from microkernel.backend import Backend, Placement
from microkernel.binding import Binding
from microkernel.config.model import SecondaryDevice
from microkernel.factories import make, resolve


def make_backend(factory: str, settings: Any) -> Backend:
    """Import `"module:callable"` and call it with the settings, or with nothing for None."""
    backend: Backend = make(factory, settings)
    return backend


def settings_to_json(settings: Any) -> Any:
    """A settings object as plain data: its class by name, and its values."""
    if settings is None:
        return None
    kind = type(settings)
    values = {name: getattr(settings, name) for name in kind.__dataclass_fields__}
    return {"type": f"{kind.__module__}:{kind.__qualname__}", "values": values}


def settings_from_json(document: Any) -> Any:
    """The settings object that `settings_to_json` described."""
    if document is None:
        return None
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in document["values"].items()}
    return resolve(document["type"])(**values)


def placement_to_json(placement: Placement) -> dict[str, Any]:
    """A placement as plain data."""
    return asdict(placement)


def placement_from_json(document: dict[str, Any]) -> Placement:
    """The placement that `placement_to_json` described."""
    bound = document["binding"]
    binding = Binding(**bound | {"processors": tuple(bound["processors"])})
    devices = tuple(SecondaryDevice(**device) for device in document["secondary_devices"])
    return Placement(**document | {"binding": binding, "secondary_devices": devices})
