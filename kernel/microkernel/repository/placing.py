"""Where the instances of a model run: their devices, and their share of the host. Pure."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from microkernel.backend import Placement
from microkernel.binding import Binding, HostPolicy
from microkernel.config.model import InstanceGroup, ModelConfig, Optimization

NICENESS = {"PRIORITY_DEFAULT": 0, "PRIORITY_MAX": 0, "PRIORITY_MIN": 19}
"""By how much the threads of a model are nicer than the server, by `optimization.priority`. Triton
has 5, 0 and 19 for the threads that form batches; these run the model, and one that nobody chose to
slow down should not give way to other programs. More than the server's own priority takes
privileges."""

_USUAL_POLICY = {"KIND_CPU": "cpu", "KIND_MODEL": "model"}


@dataclass(frozen=True, slots=True)
class Share:
    """What of the host instances may use: so many processors, and what the host policies say."""

    processors: int = 1
    policies: Mapping[str, HostPolicy] = field(default_factory=dict)


def placements(config: ModelConfig, share: Share) -> list[Placement]:
    """One placement per instance of a normalised configuration. Instances on different GPUs share a
    name. Those that are bound to the same processors have equal shares of these, at least one
    thread each; those that are not, of all. Passive ones count for nothing."""
    priority = (config.optimization or Optimization()).priority
    made = [
        Placement(
            f"{group.name}_{index}",
            group.kind,
            device,
            group=position,
            passive=group.passive,
            secondary_devices=group.secondary_devices,
            binding=_binding(group, device, share.policies, NICENESS[priority]),
        )
        for position, group in enumerate(config.instance_group)
        for index in range(group.count)
        for device in (group.gpus if group.kind == "KIND_GPU" else (0,))
    ]
    active = Counter(place.binding.processors for place in made if not place.passive)
    return [replace(place, threads=_threads(place, active, share.processors)) for place in made]


def policy_of(group: InstanceGroup, device: int) -> str:
    """The name of the host policy of an instance: what its group says, else one by its kind."""
    return group.host_policy or _USUAL_POLICY.get(group.kind, f"gpu_{device}")


def unknown_policies(config: ModelConfig, policies: Mapping[str, HostPolicy]) -> list[str]:
    """The host policies that groups name and nothing is said of, each once."""
    named = (group.host_policy for group in config.instance_group if group.host_policy)
    return [name for name in dict.fromkeys(named) if name not in policies]


def _binding(
    group: InstanceGroup, device: int, policies: Mapping[str, HostPolicy], niceness: int
) -> Binding:
    policy = policies.get(policy_of(group, device), HostPolicy())
    return Binding(policy.processors, policy.node, niceness)


def _threads(place: Placement, active: Counter[tuple[int, ...]], processors: int) -> int:
    own = place.binding.processors
    usable = min(len(own), processors) if own else processors
    return max(1, usable // max(1, active[own]))
