"""Writes docs/reference/cli.md and docs/reference/config.md from the code: `python docs/reference.py`."""

from __future__ import annotations

import inspect
import io
import re
import tokenize
from pathlib import Path
from typing import Any

import typer
from pydantic_core import PydanticUndefined

from spftsql import config
from spftsql.cli import app
from spftsql.recipes import section_of

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/reference.py: change the code, then `make reference`. -->\n"


def cli_page() -> str:
    """Every command with its arguments and options."""
    parts = [
        NOTE,
        "# Commands\n\nAlso `spftsql COMMAND --help`. "
        "Exit codes: 0 well, 1 see the command, 2 you can mend it, 4 we failed.\n",
    ]
    parts += [_command(name, command) for name, command in _commands("spftsql", typer.main.get_command(app))]
    return "\n".join(parts)


def config_page() -> str:
    """Every key of a recipe with its type and default."""
    parts = [
        NOTE,
        "# Configuration\n\nThe keys of a recipe; `--set section.key=value` overrides one. "
        "`spftsql config show RECIPE` prints them resolved.\n",
    ]
    parts.append(_section("The top level", config.Config))
    paths: dict[Any, list[str]] = {}
    for path, section in _sections(config.Config):
        paths.setdefault(section, []).append(f"`{path}`")
    parts += [_section(", ".join(places), section) for section, places in paths.items()]
    return "\n".join(parts)


def _commands(name: str, command: Any) -> list[tuple[str, Any]]:
    if not hasattr(command, "list_commands"):
        return [(name, command)]
    children = {child: command.get_command(None, child) for child in sorted(command.list_commands(None))}
    return [found for child, made in children.items() for found in _commands(f"{name} {child}", made)]


def _command(name: str, command: Any) -> str:
    parameters = [parameter for parameter in command.params if parameter.name != "help"]
    lines = [f"## `{name}`\n", f"{' '.join((command.help or '').split())}\n"]
    lines += ["| option | default | what |", "|---|---|---|"] if parameters else []
    for parameter in parameters:
        flags = ", ".join(f"`{flag}`" for flag in parameter.opts)
        if parameter.param_type_name == "argument":
            flags = f"`{parameter.metavar or parameter.name.upper()}`"
        default = "required" if parameter.required else _plain(parameter.default)
        lines.append(f"| {flags} | {default} | {_cell(getattr(parameter, 'help', '') or '')} |")
    return "\n".join(lines) + "\n"


def _sections(model: Any, path: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, field in model.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None:
            where = f"{path}{field.alias or name}"
            found += [(where, inner), *_sections(inner, f"{where}.")]
    return found


def _section(title: str, model: Any) -> str:
    comments = _comments(model)
    lines = [f"## {title}\n", f"{_doc(model)}\n", "| key | type | default | what |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if field.is_required():
            default = "required"
        else:
            value = field.default if field.default is not PydanticUndefined else field.default_factory()
            default = "see below" if isinstance(value, config.Section) else _plain(value)
            if isinstance(value, tuple) and value and isinstance(value[0], config.Section):
                default = f"{len(value)} built in"
        lines.append(f"| `{field.alias or name}` | {_type(field)} | {default} | {_cell(comments.get(name, ''))} |")
    return "\n".join(lines) + "\n"


def _type(field: Any) -> str:
    annotation = field.annotation
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    text = re.sub(r"(typing|pathlib|spftsql\.\w+|annotated_types)\.", "", text).replace("NoneType", "null")
    text = re.sub(r"Literal\[([^\]]*)\]", lambda match: match[1].replace("'", ""), text)
    bounds = [
        f"{_BOUNDS[kind]} {getattr(m, kind.lower())}" for m in field.metadata if (kind := type(m).__name__) in _BOUNDS
    ]
    return _cell(", ".join([text, *bounds]))


_BOUNDS = {"Gt": ">", "Ge": "≥", "Lt": "<", "Le": "≤"}


def _comments(model: Any) -> dict[str, str]:
    """The comment at the end of each field's line."""
    found: dict[str, str] = {}
    name = ""
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(model)).readline):
        if token.type == tokenize.NAME and token.start[1] == 4:
            name = token.string
        elif token.type == tokenize.COMMENT and token.start[1] > 4:
            found[name] = " ".join([found.get(name, ""), token.string.lstrip("# ")]).strip()
    return found


def _doc(model: Any) -> str:
    return inspect.cleandoc(model.__doc__ or "").replace("\n\n", "\0").replace("\n", " ").replace("\0", "\n\n")


def _plain(value: Any) -> str:
    if value is None or value is False or value == () or value == {}:
        return {"None": "–", "False": "off", "()": "–", "{}": "–"}[str(value)]
    return f"`{value}`" if value != "" else "empty"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    """Writes both pages."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "cli.md").write_text(cli_page(), encoding="utf-8")
    (FOLDER / "config.md").write_text(config_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
