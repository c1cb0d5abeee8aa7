"""Recall of schema linking and of value lookup on Spider dev and BIRD dev, alone and merged, and the time they take.

    SPFTSQL_DATA=DIR python -m benchmarks.linking [--fit]

A gold column is found when the prompt's part of the schema holds it. `recall` is the share of a question's gold columns
that are kept, averaged over questions; `all` is the share of questions with every gold table and column kept. Weights
and thresholds were set on Spider's training questions; no question reported here was looked at for that. `--fit` fits
the weights again and prints them. Tokens are Mistral's Tekken, which comes with vLLM.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import mistral_common
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from rich.console import Console
from rich.table import Table

from benchmarks.linking.cases import Case, Source, cases, merged, moved, published_sources, rows_of, spider_sources
from benchmarks.measure import machine
from spftsql.databases.schema import Schema
from spftsql.databases.schema import Table as SchemaTable
from spftsql.linking.linker import Linker
from spftsql.linking.schema_words import SchemaWords
from spftsql.linking.scoring import scores
from spftsql.linking.selection import Costs, restricted, select
from spftsql.linking.value_index import ValueIndex, key_of
from spftsql.linking.value_matching import matching_values

_DEFAULT = 1_500  # tokens: prompt.max_schema_tokens
_BUDGETS = (_DEFAULT, 400, 200)
_SHARES = (0.05, 0.10, 0.15)
_LITERAL = re.compile(r"'((?:[^']|'')*)'|\"([^\"]*)\"")

Count = Callable[[str], int]


@dataclass(frozen=True)
class Recall:
    """Averages over questions, as shares: of columns kept, of gold columns and tables found, of all found."""

    questions: int
    columns_kept: float
    recall: float
    table_recall: float
    all_kept: float
    left_out: int = 0


def main() -> None:
    """Prints the tables, then the figures as one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.linking")
    parser.add_argument("--fit", action="store_true", help="fit the weights on Spider's training questions, print them")
    options = parser.parse_args()
    if "SPFTSQL_DATA" not in os.environ:
        parser.error("set SPFTSQL_DATA to the folder of the benchmark data")
    data = Path(os.environ["SPFTSQL_DATA"])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPFTSQL_CACHE"] = folder  # cold, and nothing of it is left behind
        if options.fit:
            from benchmarks.linking.fit import fit

            print(json.dumps({"weights": {name: round(weight, 2) for name, weight in fit(data, Path(folder)).items()}}))
        else:
            _report(data, Path(folder))


def _report(data: Path, folder: Path) -> None:
    count = _counter()
    spider_rows = rows_of(data / "spider" / "dev.json")
    spider = spider_sources(data / "spider", (row[0] for row in spider_rows))
    bird = published_sources(data / "bird" / "dev_tables.json")
    sets: list[tuple[str, dict[str, Source], list[Case], int]] = []
    for name, sources, rows in (
        ("Spider dev", spider, spider_rows),
        ("Spider dev, no comments", _without_comments(spider), spider_rows),
        ("Spider-Syn dev", spider, rows_of(data / "spider-syn" / "dev.json", "SpiderSynQuestion")),
        ("Spider-Realistic", spider, rows_of(data / "spider-realistic" / "spider-realistic.json")),
        ("BIRD dev, schema only", bird, rows_of(data / "bird" / "dev.json", sql="SQL")),
    ):
        sets.append((name, sources, *cases(rows, sources)))
    figures: dict[str, object] = {"machine": machine()}
    table = Table(title="Recall of the gold's columns and tables")
    for heading in ("set", "columns", "budget", "columns kept", "recall", "tables", "all"):
        table.add_column(heading, justify="left" if heading == "set" else "right")
    for name, sources, found, left_out in sets:
        for budget in _BUDGETS:
            got = _with_tokens(sources, found, left_out, count, budget)
            figures[f"{name}, {budget} tokens"] = asdict(got)
            _add(table, name, str(max(_size(sources[case.db_id]) for case in found)), f"{budget} tokens", got)
    for name, sources, found, left_out in sets:
        source, renamed = merged(sources, sorted({case.db_id for case in found}), folder)
        here = [moved(case, renamed) for case in found]
        for share in _SHARES:
            got = _with_columns(source, here, left_out, share)
            figures[f"{name}, merged, {share:.0%} of the columns"] = asdict(got)
            _add(table, f"{name}, merged", str(_size(source)), f"{share:.0%} of columns", got)
        got = _with_tokens({"merged": source}, here, left_out, count, _DEFAULT)
        figures[f"{name}, merged, {_DEFAULT} tokens"] = asdict(got)
        _add(table, f"{name}, merged", str(_size(source)), f"{_DEFAULT} tokens", got)
    console = Console(width=120)
    console.print(table)
    figures["values, Spider dev"] = _values("Spider dev", spider, sets[0][2], count, console)
    hero, folder_of_hero = "superhero", data / "bird" / "dev_databases" / "superhero"
    heroes = {hero: replace(bird[hero], file=folder_of_hero / f"{hero}.sqlite")}
    asked = [case for case in sets[-1][2] if case.db_id == hero]
    figures["values, BIRD dev superhero"] = _values("BIRD dev, superhero", heroes, asked, count, console)
    whole, renamed = merged(spider, sorted(spider), folder)
    figures["speed"] = _speed(whole, [moved(case, renamed) for case in sets[0][2]], count, console)
    print(json.dumps(figures))


def _add(table: Table, name: str, columns: str, budget: str, got: Recall) -> None:
    shares = (got.columns_kept, got.recall, got.table_recall, got.all_kept)
    table.add_row(name, columns, budget, *(f"{share:.4f}" for share in shares))


def _with_tokens(sources: dict[str, Source], found: Sequence[Case], left_out: int, count: Count, budget: int) -> Recall:
    """With the text of the schema held to `budget` tokens, as a prompt holds it."""
    linkers = {name: Linker(sources[name].schema, sources[name].index(), count, budget) for name in _names(found)}
    parts = []
    for case in found:
        linked = linkers[case.db_id].link(_text(case))
        if count(linked.text) > budget:
            raise AssertionError(f"{case.db_id}: the schema text is over the budget of {budget} tokens")
        parts.append((case, linked.schema, _size(sources[case.db_id])))
    return _recall(parts, left_out)


def _with_columns(source: Source, found: Sequence[Case], left_out: int, share: float) -> Recall:
    """With at most `share` of the columns, keys included."""
    words, index = SchemaWords(source.schema), source.index()
    costs = Costs([0] * len(source.schema.tables), [1] * len(words.columns), [0] * len(words.links))
    parts = []
    for case in found:
        values = matching_values(_text(case), index) if index else []
        kept = select(words, scores(words, _text(case), values), costs, int(share * len(words.columns)))
        parts.append((case, restricted(words, kept), len(words.columns)))
    return _recall(parts, left_out)


def _recall(parts: Iterable[tuple[Case, Schema, int]], left_out: int) -> Recall:
    rows = []
    for case, schema, size in parts:
        tables = {table.name.lower() for table in schema.tables}
        columns = {(table.name.lower(), column.name.lower()) for table in schema.tables for column in table.columns}
        gold = case.gold
        rows.append(
            (
                len(columns) / size,
                len(gold.columns & columns) / len(gold.columns) if gold.columns else 1.0,
                len(gold.tables & tables) / len(gold.tables) if gold.tables else 1.0,
                float(gold.columns <= columns and gold.tables <= tables),
            )
        )
    return Recall(len(rows), *(round(statistics.fmean(column), 4) for column in zip(*rows, strict=True)), left_out)


def _values(
    name: str, sources: dict[str, Source], found: Sequence[Case], count: Count, console: Console
) -> dict[str, float]:
    """How many of the gold's string literals that are cells stand in the prompt, and how many values it shows."""
    linkers: dict[str, tuple[Linker, ValueIndex]] = {}
    wanted = got = shown = right = 0
    for case in found:
        if case.db_id not in linkers:
            index = sources[case.db_id].index()
            assert index is not None
            linkers[case.db_id] = Linker(sources[case.db_id].schema, index, count, _DEFAULT), index
        linker, index = linkers[case.db_id]
        literals = {quoted or other for quoted, other in _LITERAL.findall(case.sql)}
        cells = {cell.value for cell in index.with_keys([key_of(text) for text in sorted(literals)])} & literals
        values = [match.value for match in linker.link(_text(case)).values]
        wanted, got = wanted + len(cells), got + len(cells & set(values))
        shown, right = shown + len(values), right + sum(value in cells for value in values)
    figures = {
        "literals": wanted,
        "recall": round(got / wanted, 4),
        "shown_per_question": round(shown / len(found), 2),
        "precision": round(right / shown, 4),
    }
    console.print(
        f"Values, {name}: {got} of {wanted} literals of the gold that are cells are in the prompt "
        f"({figures['recall']:.1%}); {figures['shown_per_question']} values a question, "
        f"{figures['precision']:.1%} of them in its gold"
    )
    return figures


def _speed(source: Source, found: Sequence[Case], count: Count, console: Console) -> dict[str, float]:
    """Seconds to the first schema text with nothing cached, then with the values cached; milliseconds of the next."""
    os.environ["SPFTSQL_CACHE"] = str(Path(os.environ["SPFTSQL_CACHE"]) / "speed")
    figures: dict[str, float] = {"columns": _size(source)}
    for name in ("cold_s", "cached_s"):
        begin = time.perf_counter()
        linker = Linker(source.schema, source.index(), count, _DEFAULT)
        linker.link(found[0].question)
        figures[name] = round(time.perf_counter() - begin, 4)
    figures |= _each(linker, found)
    wide = Linker(_wide(source.schema, 2_000), None, count, _DEFAULT)
    figures |= {f"wide_{name}": value for name, value in _each(wide, found).items()} | {"wide_columns": 2_000}
    console.print(
        f"Speed, {figures['columns']} columns: first text {figures['cold_s']} s cold, {figures['cached_s']} s with the "
        f"values cached; then {figures['median_ms']} ms a question ({figures['p99_ms']} ms at the 99th percentile); "
        f"2,000 columns without values: {figures['wide_median_ms']} ms"
    )
    return figures


def _each(linker: Linker, found: Sequence[Case]) -> dict[str, float]:
    times = []
    for case in found:
        begin = time.perf_counter()
        linker.link(case.question)
        times.append((time.perf_counter() - begin) * 1000)
    return {
        "median_ms": round(statistics.median(times), 2),
        "p99_ms": round(statistics.quantiles(times, n=100)[98], 2),
    }


def _without_comments(sources: dict[str, Source]) -> dict[str, Source]:
    """The same databases as their identifiers alone describe them."""

    def bare(table: SchemaTable) -> SchemaTable:
        return replace(table, columns=tuple(replace(column, comment="") for column in table.columns), comment="")

    return {
        name: replace(source, schema=replace(source.schema, tables=tuple(map(bare, source.schema.tables))))
        for name, source in sources.items()
    }


def _wide(schema: Schema, columns: int) -> Schema:
    """The tables of `schema` over and over under further names, up to that many columns; no keys."""
    tables: list[SchemaTable] = []
    left, number = columns, 0
    while left:
        for table in schema.tables:
            kept = table.columns[:left]
            left -= len(kept)
            if kept:
                tables.append(SchemaTable(f"{table.name}_{number}" if number else table.name, kept))
        number += 1
    return Schema("wide", schema.dialect, tuple(tables))


def _names(found: Iterable[Case]) -> list[str]:
    return sorted({case.db_id for case in found})


def _size(source: Source) -> int:
    return sum(len(table.columns) for table in source.schema.tables)


def _text(case: Case) -> str:
    return f"{case.question}\n{case.evidence}" if case.evidence else case.question


def _counter() -> Count:
    tokenizer = Tekkenizer.from_file(Path(mistral_common.__file__).parent / "data" / "tekken_240911.json")
    return lambda text: len(tokenizer.encode(text, bos=False, eos=False))


if __name__ == "__main__":
    main()
