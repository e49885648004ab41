"""The command `microkernel export`."""

from pathlib import Path
from typing import Any

import click

from microkernel import config_to_text
from microkernel_torchscript.exporting.specs import (
    FORMATS,
    Wish,
    arguments_of,
    format_of,
    input_spec,
    labels_of,
)
from microkernel_torchscript.exporting.target import load_weights, make_module
from microkernel_torchscript.exporting.writing import Exported, export_module, is_found

_EXAMPLES = """
\b
Examples:
  microkernel export net.py:Net --weights net.pth \\
      --input image:fp32:-1,3,224,224 --max-batch-size 8 \\
      --output-name scores --label scores=classes.txt \\
      --output models/net/1/model.pt
  microkernel export torchvision.models:resnet18 --arg num_classes=10 \\
      --input x:fp32:-1,3,224,224 --output models/resnet/1/model.pt2
"""


@click.command("export", epilog=_EXAMPLES, context_settings={"max_content_width": 100})
@click.argument("target", metavar="FILE.py:NAME|PACKAGE.MODULE:NAME")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The file to write: models/NAME/1/model.pt for TorchScript, model.pt2 for torch.export.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME:TYPE:DIMS",
    help="An input: its name, which had better be that of an argument of forward; its type, such "
    "as fp32, int64 or string; the shape that forward sees, -1 where a size varies.",
)
@click.option(
    "--output-name",
    "output_names",
    multiple=True,
    metavar="NAME",
    help="The name of an output, in order. [default: a dictionary's keys, else OUTPUT__0, ...]",
)
@click.option(
    "--max-batch-size",
    type=click.IntRange(min=0),
    default=0,
    help="Let the server run so many rows of different requests together. [default: 0, none]",
)
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="OUTPUT=FILE",
    help="The names of the classes of an output, one a line, for clients that ask for classes.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="A state dict to load: what torch.save writes, or .safetensors.",
)
@click.option(
    "--arg",
    "arguments",
    multiple=True,
    metavar="NAME=VALUE",
    help="A keyword argument of the class or function; a Python literal, else text.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    help="How to save it. [default: script for .pt, export for .pt2]",
)
def export(
    target: str, output: Path, weights: Path | None, arguments: tuple[str, ...], **given: Any
) -> None:
    """Make a model file of a PyTorch module that serves with no configuration.

    The module runs here: its code is trusted. What it takes and gives is written into the file, and
    the file is kept only where it gives what the module gives.
    """
    wish = Wish(
        form=format_of(output, given["form"]),
        inputs=tuple(map(input_spec, given["inputs"])),
        output_names=given["output_names"],
        max_batch_size=given["max_batch_size"],
        labels=labels_of(given["labels"]),
    )
    module = make_module(target, arguments_of(arguments))
    if weights is not None:
        load_weights(module, weights)
    _report(export_module(module, wish, output), wish, output)


def _report(exported: Exported, wish: Wish, output: Path) -> None:
    click.echo(config_to_text(exported.config), nl=False)
    click.echo(f"# {output}: {wish.form}, {output.stat().st_size / 2**20:.1f} MiB")
    click.echo(f"# largest difference from the module: {exported.difference:.3g}")
    if exported.could_batch:
        click.echo("# every first dimension varies: --max-batch-size would have requests batched")
    if not is_found(output):
        click.echo(
            f"# a server finds it without a configuration as models/NAME/1/model{output.suffix}"
        )
