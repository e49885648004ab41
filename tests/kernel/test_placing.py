"""Where instances run: devices, names, threads, what they are bound to, and who shares a worker."""

from collections.abc import Mapping

import pytest

from microkernel import BackendType, Binding, InstanceGroup, ModelConfig, Placement
from microkernel.binding import HostPolicy
from microkernel.config.model import Optimization, SecondaryDevice
from microkernel.models.roster import seats
from microkernel.repository.complete import normalise
from microkernel.repository.placing import Share, placements, policy_of, unknown_policies
from microkernel.workers.hosting import placement_from_json, placement_to_json

USUAL = Binding()


def group(
    name: str, count: int = 1, kind: str = "KIND_CPU", gpus: tuple[int, ...] = (), policy: str = ""
) -> InstanceGroup:
    return InstanceGroup(name=name, count=count, kind=kind, gpus=gpus, host_policy=policy)


def cpu(name: str, threads: int, group: int = 0) -> Placement:
    return Placement(name, "KIND_CPU", 0, threads, group, binding=USUAL)


def gpu(name: str, device: int, threads: int) -> Placement:
    return Placement(name, "KIND_GPU", device, threads, binding=USUAL)


@pytest.mark.parametrize(
    ("groups", "processors", "wanted"),
    [
        ([group("m")], 8, [cpu("m_0", 8)]),
        ([group("m", 3)], 8, [cpu(f"m_{i}", 2) for i in range(3)]),
        (
            [group("a", 1, "KIND_MODEL"), group("b", 2)],
            2,
            [
                Placement("a_0", "KIND_MODEL", 0, 1, 0, binding=USUAL),
                cpu("b_0", 1, 1),
                cpu("b_1", 1, 1),
            ],
        ),
        (
            [group("m", 2, "KIND_GPU", (1, 3))],
            8,
            [gpu("m_0", 1, 2), gpu("m_0", 3, 2), gpu("m_1", 1, 2), gpu("m_1", 3, 2)],
        ),
        ([], 4, []),
    ],
)
def test_every_instance_has_a_place(
    groups: list[InstanceGroup], processors: int, wanted: list[Placement]
) -> None:
    assert placements(ModelConfig(instance_group=tuple(groups)), Share(processors)) == wanted


@pytest.mark.parametrize(
    ("entry", "device", "name"),
    [
        (group("m"), 0, "cpu"),
        (group("m", kind="KIND_MODEL"), 0, "model"),
        (group("m", kind="KIND_GPU", gpus=(0, 2)), 2, "gpu_2"),
        (group("m", policy="mine"), 0, "mine"),
        (group("m", kind="KIND_GPU", gpus=(0,), policy="mine"), 0, "mine"),
    ],
)
def test_which_policy_holds_for_an_instance(entry: InstanceGroup, device: int, name: str) -> None:
    assert policy_of(entry, device) == name


POLICIES = {
    "cpu": HostPolicy((0, 1)),
    "gpu_1": HostPolicy((4, 5, 6, 7), 1),
    "far": HostPolicy(node=1),
}


@pytest.mark.parametrize(
    ("groups", "wanted"),
    [
        ([group("m", 2)], [((0, 1), None, 1)] * 2),
        ([group("m"), group("n")], [((0, 1), None, 1)] * 2),
        ([group("m"), group("n", policy="far")], [((0, 1), None, 2), ((), 1, 8)]),
        ([group("m", policy="unknown")], [((), None, 8)]),
        (
            [group("m", kind="KIND_GPU", gpus=(0, 1))],
            [((), None, 8), ((4, 5, 6, 7), 1, 4)],
        ),
        ([group("m", 5)], [((0, 1), None, 1)] * 5),
    ],
)
def test_policies_bind_instances_and_give_them_threads(
    groups: list[InstanceGroup], wanted: list[tuple[tuple[int, ...], int | None, int]]
) -> None:
    found = placements(ModelConfig(instance_group=tuple(groups)), Share(8, POLICIES))
    assert [(p.binding.processors, p.binding.node, p.threads) for p in found] == wanted


def test_there_are_no_more_threads_than_the_quota_grants() -> None:
    (place,) = placements(
        ModelConfig(instance_group=(group("m", kind="KIND_GPU", gpus=(1,)),)), Share(2, POLICIES)
    )
    assert place.threads == 2


@pytest.mark.parametrize(
    ("priority", "niceness"),
    [("PRIORITY_DEFAULT", 0), ("PRIORITY_MAX", 0), ("PRIORITY_MIN", 19)],
)
def test_the_priority_of_a_model_is_its_niceness(priority: str, niceness: int) -> None:
    config = ModelConfig(instance_group=(group("m"),), optimization=Optimization(priority=priority))
    assert placements(config, Share(1))[0].binding.niceness == niceness


def test_passive_instances_take_no_share() -> None:
    passive = InstanceGroup("p", "KIND_CPU", 3, passive=True)
    found = placements(ModelConfig(instance_group=(group("m"), passive)), Share(8))
    assert [(p.name, p.passive, p.threads) for p in found if not p.passive] == [("m_0", False, 8)]
    assert [p.passive for p in found] == [False, True, True, True]


def test_secondary_devices_are_those_of_the_group() -> None:
    devices = (SecondaryDevice("KIND_NVDLA", 1),)
    entry = InstanceGroup("m", "KIND_GPU", 1, gpus=(0,), secondary_devices=devices)
    assert placements(ModelConfig(instance_group=(entry,)), Share())[0].secondary_devices == devices


@pytest.mark.parametrize(
    ("policies", "unknown"),
    [({}, ["far", "near"]), (POLICIES, ["near"])],
)
def test_policies_that_say_nothing(policies: Mapping[str, HostPolicy], unknown: list[str]) -> None:
    groups = (group("a", policy="far"), group("b", policy="near"), group("c", policy="far"))
    config = ModelConfig(instance_group=(*groups, group("d")))
    assert unknown_policies(config, policies) == unknown


def test_a_backend_of_a_stranger_gets_instances_on_every_gpu() -> None:
    backend = BackendType("strange", "strange:make", gpu=True)
    config = ModelConfig(
        name="m", instance_group=(InstanceGroup(count=2), InstanceGroup(gpus=(2,), count=1))
    )
    found = placements(normalise(config, backend, gpus=3), Share(6))
    assert [(p.name, p.kind, p.device_id, p.group) for p in found] == [
        *[("m_0_0", "KIND_GPU", device, 0) for device in range(3)],
        *[("m_0_1", "KIND_GPU", device, 0) for device in range(3)],
        ("m_1_0", "KIND_GPU", 2, 1),
    ]


BOUND = Placement("b", "KIND_CPU", binding=Binding((0,)))
PLACES = [Placement("a", "KIND_CPU"), BOUND, Placement("c", "KIND_CPU")]


@pytest.mark.parametrize(
    ("kind", "shared"),
    [
        ("process", [["a", "c"], ["b"]]),
        ("instance", [["a"], ["b"], ["c"]]),
        ("thread", [["a", "b", "c"]]),
    ],
)
def test_only_what_is_bound_alike_shares_a_process(kind: str, shared: list[list[str]]) -> None:
    assert [[place.name for place in seat] for seat in seats(PLACES, kind)] == shared


def test_a_placement_travels_as_plain_data() -> None:
    place = Placement(
        *("m_0", "KIND_GPU", 2, 3, 1, True),
        secondary_devices=(SecondaryDevice("KIND_NVDLA", 1),),
        binding=Binding((0, 3), 1, 5),
    )
    assert placement_from_json(placement_to_json(place)) == place
