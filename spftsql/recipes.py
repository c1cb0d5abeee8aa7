"""Recipes: from YAML files and dotted overrides to a checked configuration.

A recipe may name others in `extends`; each is laid over the one before, and its own keys over them all. Of its
`profiles` (parts of a tree by name, one for each kind of hardware) the one that `profile` names is laid over that. An
unknown key is an error that names the nearest known one. `resolve(recipe, overrides)` is the only way in; the resolved
tree is written into the run directory.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from spftsql.config import Config, Section
from spftsql.errors import UserError


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("jobs") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def resolve(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Reads a recipe by name or file, lays `a.b=value` overrides over it, and checks everything.

    Raises `UserError` when the recipe is missing, is not YAML, or has an unknown key or a bad value.
    """
    tree = _load(recipe, seen=())
    chosen = [override for override in overrides if override.startswith("profile=")]
    for override in chosen:
        _assign(tree, override)
    tree = _with_profile(tree, recipe)
    for override in overrides:
        if override not in chosen:
            _assign(tree, override)
    return validate(tree, where=recipe)


def validate(tree: dict[str, Any], where: str) -> Config:
    """A checked `Config` from a plain tree; every complaint in one `UserError`."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{where}: " + "; ".join(_complaint(e) for e in error.errors())) from None


def recipe_of_run(run: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration that a run has written into its directory, with overrides laid over it.

    Raises `UserError` where it is missing, damaged or of another version.
    """
    file, anew = run / "config.yaml", "run the recipe again, which writes it anew"
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{file} cannot be read: {anew}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not valid YAML ({' '.join(str(error).split())}): {anew}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{file} is empty or not a mapping: {anew}")
    apply_overrides(tree, overrides)
    return validate(tree, where=str(file))


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Lays `a.b=value` over a plain tree, in place. Raises `UserError` for one that is not of that form."""
    for override in overrides:
        _assign(tree, override)


def _load(recipe: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if recipe in seen:
        raise UserError(f"recipe {recipe} extends itself ({' -> '.join((*seen, recipe))})")
    text = _read(recipe, beside=seen[-1] if seen else None)
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"recipe {recipe} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"recipe {recipe} is empty or not a mapping; see `spftsql config show demo` for one that works")
    parents = tree.pop("extends", None) or []
    merged: dict[str, Any] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        merged = _overlay(merged, _load(parent, (*seen, recipe)))
    return _overlay(merged, tree)


def _with_profile(tree: dict[str, Any], recipe: str) -> dict[str, Any]:
    profiles, profile = tree.pop("profiles", {}), tree.pop("profile", None)
    if profile is None:
        return tree
    if profile not in profiles:
        known = ", ".join(profiles) or "it has none"
        raise UserError(f"recipe {recipe} has no profile {profile}; known: {known}")
    return _overlay(tree, profiles[profile])


def _read(recipe: str, beside: str | None) -> str:
    if recipe.endswith((".yaml", ".yml")):
        path = Path(recipe)
        if beside and not path.is_absolute() and not path.exists():
            path = Path(beside).parent / path
        if not path.is_file():
            raise UserError(f"recipe file {recipe} does not exist")
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"recipe file {recipe} cannot be read as UTF-8 text: {error}") from None
    entry = resources.files("jobs") / "recipes" / f"{recipe}.yaml"
    if not entry.is_file():
        near = difflib.get_close_matches(recipe, recipe_names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(recipe_names())}, or a .yaml file"
        raise UserError(f"no recipe named {recipe}{hint}")
    return entry.read_text(encoding="utf-8")


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _overlay(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _assign(tree: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise UserError(f"--set takes a.b=value, not {override!r}")
    *parents, last = path.strip().split(".")
    for name in parents:
        child = tree.setdefault(name, {})
        if child is None:
            child = tree[name] = {}
        if not isinstance(child, dict):
            raise UserError(f"--set {override}: {name} is a value, not a section")
        tree = child
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {override}: the value is not valid YAML") from None


def _complaint(error: Any) -> str:
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), _known_keys(error["loc"][:-1]), n=1, cutoff=0.5)
        return f"unknown key {location}" + (f"; did you mean {near[0]}?" if near else "")
    if error["type"] == "missing":
        return f"{location} is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{location}: {message[0].lower()}{message[1:]}" if location else message


def _known_keys(path: Sequence[Any]) -> list[str]:
    section: Any = Config
    for name in path:
        fields = getattr(section, "model_fields", {})
        if name not in fields:
            return []
        section = section_of(fields[name].annotation)
    return [field.alias or name for name, field in getattr(section, "model_fields", {}).items()]


def section_of(annotation: Any) -> Any:
    """The section class that an annotation names; None for a plain value."""
    choices = (annotation, *typing.get_args(annotation))
    return next((a for a in choices if isinstance(a, type) and issubclass(a, Section)), None)
