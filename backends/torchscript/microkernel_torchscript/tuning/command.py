"""`microkernel tune`: measure a model, keep what was found, and show it. No torch in this
process."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from microkernel import InvalidArgument, ModelConfig, Unavailable, parse_text
from microkernel_torchscript.kinds import kind_of, package_name, recognise, script_name
from microkernel_torchscript.tuning import places
from microkernel_torchscript.tuning.asking import Answer, NotMeasured, ask, workshop
from microkernel_torchscript.tuning.keeping import find, keep, made_now
from microkernel_torchscript.tuning.page import page, points
from microkernel_torchscript.tuning.picture import HOW, draw
from microkernel_torchscript.tuning.record import Record
from microkernel_torchscript.tuning.table import summary, text_table

APPLIED = (
    "A model with the parameter AUTOTUNE 'load' or 'true' serves like this from its next load on; "
    "one that is loaded must be unloaded first."
)

_OURS = {"", "pytorch"}
_PLATFORMS = {"", "pytorch_libtorch", "libtorch", "torch_aoti"}


@click.command("tune")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--version", type=int, help="Which version. [default: the latest]")
@click.option(
    "--budget",
    type=click.IntRange(1, 86400),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="For how long to measure.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the page and the plot go. [default: beside the record]",
)
@click.option("--load", is_flag=True, help="Measure nothing, show the record that fits.")
def tune(model: Path, version: int | None, budget: int, output: Path | None, load: bool) -> int:
    """Find out how the TorchScript model of the directory MODEL runs fastest here.

    Measures the variants of the module, then instances, threads and batches of the best one, on
    random inputs. What is found is kept beside the repository, where the model's parameter AUTOTUNE
    finds it.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    directory = model.absolute()
    directory = directory.resolve() if directory.name == ".." else directory
    files = _version(directory, version)
    config = _configuration(directory, files)
    record, path = _stored(config, files) if load else _made(config, files, budget)
    click.echo(text_table(record.measured.rows))
    for line in summary(record.measured):
        click.echo(line)
    title = f"{directory.name}, version {files.name}"
    base = output / f"{directory.name}-{files.name}" if output else path and path.with_suffix("")
    for line in _show(title, record, base) if base is not None else ():
        click.echo(line)
    if path is not None:
        click.echo(APPLIED)
    return 0


def _version(directory: Path, version: int | None) -> Path:
    """The directory of a version. Raises InvalidArgument where it is not there."""
    try:
        found = {int(e.name): e for e in directory.iterdir() if e.name.isdecimal() and e.is_dir()}
    except OSError as error:
        raise InvalidArgument(f"'{directory}' cannot be read: {error.strerror}") from None
    if not found:
        raise InvalidArgument(f"'{directory}' is no directory of a model: it holds no version")
    if version is not None and version not in found:
        known = ", ".join(map(str, sorted(found)))
        raise InvalidArgument(f"model '{directory.name}' has no version {version}; it has {known}")
    return found[max(found) if version is None else version]


def _configuration(directory: Path, files: Path) -> ModelConfig:
    """What the model's configuration says. Raises InvalidArgument for a model of another backend or
    kind, and for a file that is no configuration."""
    config = replace(_written(directory / "config.pbtxt"), name=directory.name)
    if config.backend not in _OURS or config.platform not in _PLATFORMS:
        other = config.backend or config.platform
        raise InvalidArgument(f"model '{config.name}' is of '{other}'; PyTorch models are tuned")
    if not config.backend and not config.platform:
        config = recognise(config, files) or _package(config, files) or config
    return config


def _package(config: ModelConfig, files: Path) -> ModelConfig | None:
    """The configuration of a `.pt2` without one; None for other files."""
    if (files / script_name(config)).exists() or not (files / package_name(config)).exists():
        return None
    return replace(config, platform="torch_aoti")


def _written(path: Path) -> ModelConfig:
    """What a file says, nothing where there is none."""
    if not path.exists():
        return ModelConfig()
    try:
        return parse_text(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"'{path}' cannot be read: {error}") from None


def _made(config: ModelConfig, files: Path, budget: int) -> tuple[Record, Path | None]:
    """A new record, and where it is kept."""
    with workshop() as folder:
        with places.alone():
            answer = _asked(config, files, budget, folder)
        if answer.measured is None:
            raise InvalidArgument(_not_measured(config, files))
        record = made_now(answer.key, answer.measured)
        kept = keep(config.name, places.places(files), record, answer.package)
    click.echo(f"The record: {kept.path or 'it could not be kept'}")
    if kept.path is not None and kept.record.package:
        click.echo(f"The compiled model: {places.package_place(kept.path)}")
    click.echo()
    return kept.record, kept.path


def _stored(config: ModelConfig, files: Path) -> tuple[Record, None]:
    """The record that fits. Raises InvalidArgument where there is none."""
    answer = _asked(config, files, 0, None)
    if not answer.key:
        raise InvalidArgument(_not_measured(config, files))
    kept = find(config.name, places.places(files), answer.key)
    if kept is None:
        raise InvalidArgument(f"model '{config.name}' has no record of tuning that fits")
    return kept.record, None


def _asked(config: ModelConfig, files: Path, budget: int, folder: Path | None) -> Answer:
    try:
        return ask(config, files, budget, lambda text: click.echo(text, err=True), folder)
    except NotMeasured as error:
        raise Unavailable(f"model '{config.name}' was not measured: {error}") from None


def _not_measured(config: ModelConfig, files: Path) -> str:
    kind = kind_of(config, files).value
    return f"model '{config.name}' is of the kind '{kind}'; only TorchScript is measured"


def _show(title: str, record: Record, base: Path) -> Iterator[str]:
    """Write the page and the plot; the lines to print about them."""
    page_path, picture = base.with_name(f"{base.name}.html"), base.with_name(f"{base.name}.png")
    try:
        places.write_text(page_path, page(title, record))
        yield f"The page: {page_path}"
        if points(record.measured.rows):
            drawn = draw(picture, title, record.measured.rows)
            yield f"The plot: {picture}" if drawn else HOW
    except OSError as error:
        raise Unavailable(f"'{base}' cannot be written: {error.strerror}") from None
