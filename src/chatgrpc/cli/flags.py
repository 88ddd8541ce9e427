"""A flag for every setting, derived from its declaration, so that a new setting has its flag by being declared."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from chatgrpc.config import CONFIG_FILE_ENV, addresses_of, flag_name, load_settings, setting_fields
from chatgrpc.masking import mask_from_now_on

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help=f"TOML file of settings; without it, the one {CONFIG_FILE_ENV} names."),
]
DataDirOption = Annotated[Path | None, typer.Option("--data-dir", metavar="PATH", help="Folder that holds the node's data.")]


def takes_settings(*prefixes: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turns a function of the loaded settings, and of options of its own, into a command with `--config` and flags.

    Args:
        prefixes: settings whose names begin so have a flag; without any, all have.
    """
    keys = {key.replace(".", "__"): key for key, _ in setting_fields() if key.startswith(prefixes or "")}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(command).parameters.values())[1:]

        @wraps(command)
        def with_flags(config: Path | None, **values: object) -> None:
            flags = {key: values.pop(name) for name, key in keys.items()}
            loaded = load_settings(flags, config)
            mask_from_now_on(addresses_of(loaded.settings))
            command(loaded, **values)

        parameters = [
            *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own),
            _parameter("config", ConfigOption),
            *(_parameter(name, _option(key)) for name, key in keys.items()),
        ]
        with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        with_flags.__annotations__ = {}
        return with_flags

    return decorate


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _option(key: str) -> Any:
    field = dict(setting_fields())[key]
    panel = key.partition(".")[0].capitalize() if "." in key else "Options"
    help_text = f"{field.description} Default: {field.default}." if field.default is not None else field.description
    if field.annotation is bool:
        switch = f"{flag_name(key)}/--no-{flag_name(key)[2:]}"
        return Annotated[bool | None, typer.Option(switch, help=field.description, rich_help_panel=panel)]
    # The text as it was typed: the settings check it, in the same words wherever it stood.
    option = typer.Option(flag_name(key), metavar=_metavar(field.annotation), help=help_text, rich_help_panel=panel)
    return Annotated[str | None, option]


def _metavar(annotation: Any) -> str:
    choices = [choice for choice in get_args(annotation) if isinstance(choice, str)]
    if choices:
        return "|".join(choices)
    types = {annotation, *get_args(annotation)}
    return next((word for kind, word in ((Path, "PATH"), (int, "INT"), (float, "NUMBER")) if kind in types), "TEXT")
