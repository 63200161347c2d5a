"""Option models: a command takes one dataclass, and the command line gets one option for each field of it.

Typer makes options of a function's parameters. `spread` hands it a function whose parameters are the fields, and calls
the command with the dataclass. So commands share options by sharing a base class, and their code reads
`given.batch_size` in place of passing thirty names along.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import get_type_hints


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer shall see it: with the fields of its option models in place of the models.

    Args:
        command: Its parameters are annotated for typer; those annotated with a dataclass are option models. Each field
            of a model is annotated as a parameter would be, `name: Annotated[type, typer.Option(...)] = default`. Names
            of parameters and fields must differ.

    Returns:
        A function of keyword arguments only, with the name and the docstring of the command.
    """
    types = get_type_hints(command, include_extras=True)
    models = {name: kind for name, kind in types.items() if isinstance(kind, type) and dataclasses.is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in models:
            parameters += _fields(models[parameter.name])
        else:
            kind = types[parameter.name]
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def flat(**given: object) -> None:
        for name, model in models.items():
            given[name] = model(**{field.name: given.pop(field.name) for field in dataclasses.fields(model)})
        command(**given)

    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by `inspect.signature`
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flat


def _fields(model: type) -> list[inspect.Parameter]:
    """The fields of an option model as parameters; those without a default are required."""
    types = get_type_hints(model, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=types[field.name],
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
        )
        for field in dataclasses.fields(model)
    ]
