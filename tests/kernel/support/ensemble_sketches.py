"""Ensembles of any shape, drawn as a few numbers for each step."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ensemble_models import DECOUPLED, ensemble, model, step
from hypothesis import strategies as st

from microkernel.models.ensemble import EnsembleVersion


@dataclass(frozen=True)
class Line:
    """One step: which tensors it takes, of those that are there before it, how many it makes, and
    what it runs: a model, a decoupled one, or the inner ensemble."""

    takes: tuple[int, int]
    makes: int
    runs: str


takes = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 4])
lines = st.lists(
    st.builds(
        Line,
        takes=st.tuples(takes, takes),
        makes=st.integers(1, 2),
        runs=st.sampled_from(["plain", "decoupled", "inner"]),
    ),
    min_size=1,
    max_size=5,
)


@dataclass
class Sketch:
    """An ensemble on its way from lines to text; `models` are the texts of what its steps run,
    which serve nobody else. It shows what no step takes. At most `most` steps are decoupled."""

    name: str
    inner: EnsembleVersion | None = None
    most: int = 4
    models: dict[str, str] = field(default_factory=dict)
    _steps: list[str] = field(default_factory=list)
    _origins: dict[str, int | None] = field(default_factory=lambda: {"a": None})
    _taken: set[str] = field(default_factory=set)

    def text(self, lines: Sequence[Line], limit: int) -> str:
        """The ensemble's configuration."""
        for number, line in enumerate(lines):
            if line.runs == "inner" and self._may_run_inner():
                self._run_inner(number, line)
            else:
                self._run_model(number, line)
        shown = [tensor for tensor in self._origins if tensor not in self._taken]
        return ensemble(self.name, "a", " ".join(shown), *self._steps, limit=limit)

    def _may_run_inner(self) -> bool:
        """A decoupled ensemble runs in one step only, so that its answers can be told apart."""
        if self.inner is None or not self.inner.config.decoupled:
            return self.inner is not None
        used = any(f'model_name: "{self.inner.config.name}"' in text for text in self._steps)
        return not used and self.most > 0

    def _inputs(self, line: Line, most: int) -> tuple[list[str], int | None]:
        """What a step takes, and the decoupled step that all of it comes from."""
        known = list(self._origins)
        found = list(dict.fromkeys(known[take % len(known)] for take in line.takes))[:most]
        origins = {self._origins[tensor] for tensor in found} - {None}
        if len(origins) > 1:
            found = found[:1]
            origins = {self._origins[found[0]]}
        self._taken.update(found)
        return found, next(iter(origins), None)

    def _run_inner(self, number: int, line: Line) -> None:
        assert self.inner is not None
        config = self.inner.config
        inputs, origin = self._inputs(line, 1)
        names = [output.name for output in config.output]
        decoupled = config.decoupled
        self.most -= decoupled
        made = [f"{self.name}{number}{name}" for name in names]
        self._origins |= dict.fromkeys(made, number if decoupled else origin)
        outputs = " ".join(f"{n}={t}" for n, t in zip(names, made, strict=True))
        self._steps.append(step(config.name, f"a={inputs[0]}", outputs))

    def _run_model(self, number: int, line: Line) -> None:
        inputs, origin = self._inputs(line, 2)
        name = f"{self.name}_{number}"
        decoupled = line.runs == "decoupled" and self.most > 0
        self.most -= decoupled
        fed = [f"X{index}" for index in range(len(inputs))]
        gives = [f"Y{index}" for index in range(line.makes)]
        made = [f"{self.name}{number}{give}" for give in gives]
        self._origins |= dict.fromkeys(made, number if decoupled else origin)
        self._steps.append(
            step(
                name,
                " ".join(f"{n}={t}" for n, t in zip(fed, inputs, strict=True)),
                " ".join(f"{n}={t}" for n, t in zip(gives, made, strict=True)),
            )
        )
        more = DECOUPLED if decoupled else ""
        self.models[name] = model(name, " ".join(fed), " ".join(gives), more)
