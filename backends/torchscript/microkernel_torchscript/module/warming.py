"""One more first call of a compiled module, for sizes that the configuration leaves open."""

import logging
from collections.abc import Iterator

from microkernel import ModelConfig
from microkernel_torchscript.inputs import InputPlan
from microkernel_torchscript.probing.examples import Example, configured_examples, is_ragged
from microkernel_torchscript.source import Forward

logger = logging.getLogger(__name__)


def call_with_more(config: ModelConfig, inputs: InputPlan, forward: Forward) -> None:
    """Call a module with two of everything that its first call had one of, though more were
    allowed.

    Torch compiles for a size of 1 on its own. Without this call the first client that sends another
    size would wait for the compiler. What the module raises is for clients to see.
    """
    for examples in _grown(config, inputs):
        values = {example.name: example.value(other=False) for example in examples}
        try:
            forward(*inputs.lay_out(values))
        except (Exception, SystemExit):
            logger.debug("model '%s': a warm-up call failed", config.name, exc_info=True)
            continue
        return


def _grown(config: ModelConfig, inputs: InputPlan) -> Iterator[tuple[Example, ...]]:
    if is_ragged(config):
        return
    for examples in configured_examples(config, inputs.kinds):
        grown = tuple(_of_two(example) for example in examples)
        if grown != examples:
            yield grown


def _of_two(example: Example) -> Example:
    for axis in example.axes:
        if example.shape[axis] == 1:
            example = example.grown(axis, 2)
    return example
