"""The statistics of a decoupled model's responses, as a gRPC message."""

import pytest

pytest.importorskip("grpc", reason="the extra 'grpc' is missing")

from microkernel import Duration, ModelStatistics, ModelStats, ResponseStats
from microkernel_grpc.statistics import model_statistics


def test_every_position_has_its_durations() -> None:
    given = {str(k): ResponseStats(*(Duration(n, n + k) for n in range(6))) for k in (0, 1)}
    answer = model_statistics([ModelStatistics("m", "1", ModelStats(responses=given))])
    (model,) = answer.model_stats  # type: ignore[attr-defined]  # of a private pool
    fields = ("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel")
    assert {
        key: [(getattr(entry, f).count, getattr(entry, f).ns) for f in fields]
        for key, entry in model.response_stats.items()
    } == {str(k): [(n, n + k) for n in range(6)] for k in (0, 1)}
