"""`jaxcls convert`: converts any supported weights to jaxcls' format, and reports every tensor."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from jaxcls.commands.common import ClassNames, WeightsEma, read_step, require_devices
from jaxcls.commands.options import parse
from jaxcls.config.sizes import describe_size
from jaxcls.system.errors import UserError
from jaxcls.system.file_names import printable
from jaxcls.system.output import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert:
    """Writes weights as safetensors with jaxcls' names, and with the information to use them."""

    weights: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="WEIGHTS")]
    """A preset, a weights file (safetensors, HDF5 or PyTorch), hf:OWNER/REPO[@REVISION], or the
    directory of a run."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE.safetensors")]
    """File to write."""
    model: str | None = None
    """Name of the network (None: the one that the weights name, or that their tensors fit)."""
    allow_missing: tuple[str, ...] = ()
    """Regular expressions of variables that may be missing in WEIGHTS, such as 'block7.*'; they are
    then missing in the output too."""
    allow_unused: tuple[str, ...] = ()
    """Regular expressions of tensors in WEIGHTS that may stay unused, such as the layers of another
    head: 'pred/.*'."""
    ema: WeightsEma = True
    class_names: ClassNames = None
    step: str = "latest"
    """Checkpoint of a run: latest, best (by top-1 during training) or the number of a step."""


def run(arguments: list[str]) -> int:
    """Runs `jaxcls convert WEIGHTS …`; returns the exit status."""
    options = parse(Convert, "jaxcls convert", arguments)
    if options.output.suffix != ".safetensors":
        raise UserError(
            f"--output: the name must end in .safetensors, got {printable(options.output)}"
        )
    from jaxcls.models.registry import model_spec
    from jaxcls.pretrained.class_names import num_classes_of, read_class_names, with_class_names
    from jaxcls.pretrained.importing import import_variables
    from jaxcls.pretrained.jaxcls_file import write_weights
    from jaxcls.pretrained.resolve import run_weights_info
    from jaxcls.pretrained.weights import kind_of_weights, load_weights
    from jaxcls.runs.restore import restore_run

    class_names = options.class_names and read_class_names(options.class_names)
    require_devices()
    if kind_of_weights(options.weights) == "run":
        if options.model is not None or options.allow_missing or options.allow_unused:
            raise UserError(
                "--model, --allow-missing, --allow-unused: a run has its network and all of its "
                "variables; leave the options out"
            )
        if class_names is not None or not options.ema:
            raise UserError(
                "--class-names, --no-ema: a run already has its class names and the weights that "
                "it is evaluated with; leave the options out"
            )
        restored = restore_run(options.weights, step=read_step(options.step))
        info, variables = run_weights_info(restored.info), restored.variables
        report = f"step {restored.step} of the run"
    else:
        if options.step != "latest":
            raise UserError(
                f"--step: only a run has steps, and {options.weights!r} is not a run; leave the "
                f"option out"
            )
        file, info = load_weights(options.weights, model=options.model, ema=options.ema)
        variables, report = import_variables(
            file,
            model_spec(
                info.model, info.options, image_size=info.image_size, channels=info.channels
            ),
            num_classes=None,
            allow_missing=options.allow_missing,
            allow_unused=options.allow_unused,
        )
        count = num_classes_of(variables)
        if class_names is not None:
            info = with_class_names(info, class_names, count, name=options.weights)
        elif info.class_names is not None and len(info.class_names) != count:
            info = dataclasses.replace(info, class_names=None)
    write_weights(options.output, variables, info)
    say(str(report))
    say(f"wrote {printable(options.output)}: {info.model}, {describe_size(info.image_size)} px")
    return 0
