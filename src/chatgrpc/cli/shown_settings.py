"""Settings as a TOML file that `--config` would read again, each line with where its value came from."""

import json
from pathlib import Path

from pydantic import SecretStr

from chatgrpc.config import LoadedSettings, setting_fields, value_of
from chatgrpc.masking import MASK, mask_value


def as_toml(loaded: LoadedSettings) -> str:
    """The effective settings; settings without a value and secrets stand as comments, secrets in addresses are masked."""
    lines: list[tuple[str, str]] = []
    group = ""
    for key, field in setting_fields():
        prefix, _, name = key.rpartition(".")
        if prefix != group:
            lines += [("", ""), (f"[{prefix}]", "")]
            group = prefix
        setting = _setting(name, value_of(loaded.settings, key))
        lines.append((setting, f"# {loaded.origins.get(key, 'default')}: {field.description}"))
    width = max(len(setting) for setting, _ in lines)
    return "\n".join(f"{setting:<{width}}  {comment}".rstrip() for setting, comment in lines)


def _setting(name: str, value: object) -> str:
    if value is None:
        return f"# {name} ="
    if isinstance(value, SecretStr):
        return f"# {name} = {MASK}"
    return f"{name} = {_toml(value)}"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        # What JSON escapes, a TOML basic string escapes alike; DEL is the one that TOML wants and JSON does not.
        return json.dumps(mask_value(str(value)), ensure_ascii=False).replace("\x7f", "\\u007f")
    raise TypeError(f"no TOML for {type(value).__name__}")
