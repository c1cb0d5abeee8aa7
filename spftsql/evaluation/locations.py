"""Finds the databases that a benchmark's questions are about.

Below the root: `database/DB/DB.sqlite` (Spider; its test split has `test_database/` first), `dev_databases/` and
`train_databases/` (BIRD, also one folder deeper), one `.sqlite` file (GeoQuery), `DB.sqlite` (jsonl), or a
`databases.yaml` that maps names to files and URLs (jsonl). The robustness sets (Spider-Syn, Spider-DK,
Spider-Realistic) bring few databases or none: for them Spider's own are looked for in `../spider/database` and
`../database`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from spftsql.config import DatabaseConfig
from spftsql.errors import UserError
from spftsql.evaluation.sources import GEOQUERY_DATABASE, read_text

# The SQLite file declares no keys. These are the ones of geography-schema.csv, with their targets.
GEOQUERY_KEYS = (
    "border_info.state_name = state.state_name",
    "border_info.border = state.state_name",
    "city.state_name = state.state_name",
    "highlow.state_name = state.state_name",
    "lake.state_name = state.state_name",
    "mountain.state_name = state.state_name",
    "river.traverse = state.state_name",
    "state.capital = city.city_name",
)
_SUFFIXES = (".sqlite", ".db", ".duckdb")
_BELOW = ("database/*/*", "*_databases/*/*", "*/*_databases/*/*", "*")
_INSIDE = ("*/*", "*", *_BELOW)  # of a folder that the user names, which may be `database` itself
_BESIDE = ("spider/database", "database")  # of the root's own folder
_LIST = "databases.yaml"
_DESCRIPTIONS = ("tables.json", "dev_tables.json", "train_tables.json", "test_tables.json")


def database_configs(benchmark: str, root: Path, split: str | None = None) -> dict[str, DatabaseConfig]:
    """The databases found below the root (for Spider also beside it), by name.

    Raises `UserError` when GeoQuery's is missing or not the only one, or for a broken `databases.yaml`.
    """
    if benchmark == "geoquery":
        files = sorted(root.glob("*.sqlite"))
        if len(files) != 1:
            raise UserError(f"geoquery: {root} must hold one .sqlite file, the GeoQuery database; found {len(files)}")
        name = GEOQUERY_DATABASE
        return {name: DatabaseConfig(name=name, url=str(files[0]), foreign_keys=GEOQUERY_KEYS)}
    listed = _listed(root / _LIST) if benchmark == "jsonl" and (root / _LIST).is_file() else {}
    own = _files(root, _BELOW)
    if benchmark != "spider":
        return {**own, **listed}
    beside: dict[str, DatabaseConfig] = {}
    for folder in (root.absolute().parent / name for name in _BESIDE):
        if folder != root.absolute() / "database":
            beside = _files(folder, ("*/*",)) | beside
    for_test = _files(root / "test_database", ("*/*",))
    return {**beside, **own, **for_test} if split == "test" else {**beside, **for_test, **own}


def given_databases(place: Path | None, named: Sequence[str]) -> dict[str, DatabaseConfig]:
    """The databases that the user names: a folder or a YAML file of `name: URL`, and `NAME=URL`, which comes first.

    Raises `UserError` when the place is not there or nothing is in it, and for a text that is not `NAME=URL`.
    """
    found: dict[str, DatabaseConfig] = {}
    if place is not None:
        if place.is_dir():
            found = _files(place, _INSIDE)
        elif place.is_file():
            found = _listed(place)
        else:
            raise UserError(f"--databases {place} is neither a folder nor a YAML file")
        if not found:
            raise UserError(f"--databases {place}: no database file in it (expected NAME/NAME.sqlite or NAME.sqlite)")
    for item in named:
        name, equals, url = item.partition("=")
        if not (equals and name and url):
            raise UserError(f"--db takes NAME=URL, not {item!r}")
        found[name] = DatabaseConfig(name=name, url=url)
    return found


def _files(folder: Path, patterns: Sequence[str]) -> dict[str, DatabaseConfig]:
    """Database files by name: NAME/NAME.sqlite, or NAME.sqlite in the folder itself; earlier patterns first."""
    found: dict[str, DatabaseConfig] = {}
    lists: dict[Path, Path | None] = {}
    for path in _candidates(folder, patterns):
        if path.stem not in found and (path.parent == folder or path.stem == path.parent.name):
            descriptions = _descriptions(path, folder, lists)
            found[path.stem] = DatabaseConfig(name=path.stem, url=str(path), descriptions=descriptions)
    return found


def _descriptions(database: Path, root: Path, lists: dict[Path, Path | None]) -> Path | None:
    """What people wrote about a benchmark's database: BIRD's folder beside it, or a list above it, up to the root.

    `lists` keeps what was found in a folder above, for the databases that share it.
    """
    beside = database.parent / "database_description"
    if beside.is_dir():
        return beside
    holder, top = database.absolute().parents[1], root.absolute()  # `.` has no parents
    if holder not in lists:
        top = top.parent if top.name == "database" else top
        above = [folder for folder in (holder, holder.parent) if folder.is_relative_to(top)]
        candidates = (folder / name for folder in above for name in _DESCRIPTIONS)
        lists[holder] = next((file for file in candidates if file.is_file()), None)
    return lists[holder]


def _candidates(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    for pattern in patterns:
        files = sorted(path for path in folder.glob(pattern) if path.suffix in _SUFFIXES)
        yield from sorted(files, key=lambda path: _SUFFIXES.index(path.suffix))


def _listed(file: Path) -> dict[str, DatabaseConfig]:
    import yaml

    try:
        tree = yaml.safe_load(read_text(file))
    except yaml.YAMLError:
        raise UserError(f"{file} is not YAML; write one `name: file or URL` a line") from None
    if not isinstance(tree, dict) or not all(isinstance(x, str) for pair in tree.items() for x in pair):
        raise UserError(f"{file} must map the names of databases to files or URLs, one `name: file or URL` a line")
    return {
        name: DatabaseConfig(name=name, url=url if "://" in url else str(file.parent / url))
        for name, url in tree.items()
    }
