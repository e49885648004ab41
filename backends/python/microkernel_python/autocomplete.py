"""`pb_utils.ModelConfig`: what `auto_complete_config` fills in."""

import json
from typing import Any

from microkernel_python.arguments import text

Entry = dict[str, Any]

_UNKNOWN_TYPE = "TYPE_INVALID"


class ModelConfig:
    """A model configuration in its JSON form, to be completed.

    Every method raises ValueError where what it is given contradicts the configuration.
    """

    def __init__(self, model_config: str | bytes) -> None:
        self._model_config: Entry = json.loads(text(model_config, "model_config"))

    def as_dict(self) -> Entry:
        """The configuration itself: edits count."""
        return self._model_config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Set the largest batch. A configured value may be raised, not lowered."""
        present = self._model_config["max_batch_size"]
        if present > max_batch_size:
            raise ValueError(
                f"configuration specified max_batch_size {present}, but in auto-complete-config "
                f"function for model '{self._name}' specified max_batch_size {max_batch_size}"
            )
        self._model_config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Ask for dynamic batching, unless the configuration already describes it."""
        for other in ("sequence_batching", "ensemble_scheduling"):
            if other in self._model_config:
                raise ValueError(
                    f"configuration specified {other}, but in auto-complete-config function for "
                    f"model '{self._name}' tried to set dynamic_batching"
                )
        self._model_config.setdefault("dynamic_batching", {})

    def set_model_transaction_policy(self, transaction_policy_dict: Entry) -> None:
        """Say whether the model is decoupled: `{"decoupled": bool}`."""
        if set(transaction_policy_dict) - {"decoupled"}:
            raise ValueError(
                "model transaction policy in auto-complete-config function for model "
                f"'{self._name}' contains property other than 'decoupled'."
            )
        policy = self._model_config.setdefault("model_transaction_policy", {})
        for key, wanted in transaction_policy_dict.items():
            present = policy.setdefault(key, wanted)
            if present != wanted:
                raise ValueError(
                    f"configuration specified decoupled {present}, but in auto-complete-config "
                    f"function for model '{self._name}' specified decoupled {wanted}"
                )

    def add_input(self, input: Entry) -> None:  # noqa: A002 - the name models know
        """Add an input: `name`, `data_type`, `dims` and, if wanted, `optional`. A configured input
        of that name must agree; what it lacks is filled in."""
        self._add("input", input, ("optional",))

    def add_output(self, output: Entry) -> None:
        """Add an output: `name`, `data_type` and `dims`, as `add_input` does."""
        self._add("output", output, ())

    @property
    def _name(self) -> str:
        return str(self._model_config["name"])

    def _add(self, direction: str, entry: Entry, optional: tuple[str, ...]) -> None:
        self._check_keys(direction, entry, optional)
        entries: list[Entry] = self._model_config[direction]
        present = next((e for e in entries if e["name"] == entry["name"]), None)
        if present is None:
            entries.append(dict(entry))
        else:
            self._merge(direction, present, entry)

    def _check_keys(self, direction: str, entry: Entry, optional: tuple[str, ...]) -> None:
        allowed = ("name", "data_type", "dims", *optional)
        where = f"in auto-complete-config function for model '{self._name}'"
        named = f"{direction} '{entry['name']}' {where}" if "name" in entry else direction
        if set(entry) - set(allowed):
            words = [f"'{word}'" for word in allowed]
            raise ValueError(
                f"{named} contains property other than {', '.join(words[:-1])} and {words[-1]}."
            )
        for key in ("name", "data_type", "dims"):
            if key not in entry:
                raise ValueError(f"{named} is missing '{key}' property.")

    def _merge(self, direction: str, present: Entry, entry: Entry) -> None:
        if present.get("data_type", _UNKNOWN_TYPE) not in (_UNKNOWN_TYPE, entry["data_type"]):
            raise ValueError(
                f"unable to load model '{self._name}', configuration expects datatype "
                f"{present['data_type']} for {direction} '{entry['name']}', model provides "
                f"{entry['data_type']}"
            )
        tensor = f"model '{self._name}', tensor '{entry['name']}'"
        if present.get("dims") and present["dims"] != list(entry["dims"]):
            raise ValueError(
                f"{tensor}: the model expects dims {list(entry['dims'])} but the model "
                f"configuration specifies dims {present['dims']}"
            )
        if "optional" in entry and present.get("optional", False) != entry["optional"]:
            raise ValueError(
                f"{tensor}: the model expects optional {entry['optional']} but the model "
                f"configuration specifies optional {present.get('optional', False)}"
            )
        present.update(data_type=entry["data_type"], dims=list(entry["dims"]))
