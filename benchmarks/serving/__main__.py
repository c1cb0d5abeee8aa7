"""`python -m benchmarks.serving [--rounds N] [--only chat|stock|sql]`: the endpoint's own time.

Chat: the same model (52 million random parameters), prompts and number of tokens, asked of bare `vllm serve`, of
`ray.serve.llm`'s stock application and of the endpoint, in turns, at concurrency 1, 8 and 32. Only two of the servers
run at a time, the endpoint being one of them. SQL: on Chinook, what prompt, sandbox and vote add to the model's own
time with a small model that has learnt the statements of a few questions; the time of 8 samples over that of one; and
the share of schema tokens that the prefix cache has under a mixed load over ten databases. The last line is one JSON
object. Chinook is found through SPFTSQL_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Ratio, in_turns, machine, markdown, ratio
from benchmarks.serving.load import TOKENS, Side, Times, chat, sql
from benchmarks.serving.sides import build_model, configuration, ray_serve_llm, vllm_serve
from spftsql.cluster.session import end_session
from spftsql.config import ScratchConfig
from spftsql.databases.schema_text import schema_text
from spftsql.prompts import PromptBuilder
from spftsql.serving.endpoint import start_endpoint

LESSONS = {
    "How many tracks are there?": "SELECT count(*) FROM Track",
    "Which genre has the most tracks?": "SELECT Genre.Name FROM Genre JOIN Track ON Track.GenreId = Genre.GenreId "
    "GROUP BY Genre.Name ORDER BY count(*) DESC LIMIT 1",
    "Who are the customers from Brazil?": "SELECT FirstName, LastName FROM Customer WHERE Country = 'Brazil'",
    "What is the total of all invoices?": "SELECT sum(Total) FROM Invoice",
    "Which albums are by AC/DC?": "SELECT Title FROM Album JOIN Artist ON Album.ArtistId = Artist.ArtistId "
    "WHERE Artist.Name = 'AC/DC'",
}
REQUESTS = {1: 16, 8: 64, 32: 160}  # at each concurrency, in one round
DATABASES = 10


def main() -> None:
    """Runs what is asked for and prints tables, then the JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only", choices=("chat", "stock", "sql"), help="beside bare vllm serve, beside ray.serve.llm, or /v1/sql"
    )
    options = parser.parse_args()
    chinook = _chinook()
    figures: dict[str, Any] = {}
    print(machine())
    with tempfile.TemporaryDirectory(prefix="spftsql-serving-") as name:
        folder = Path(name)
        os.environ.setdefault("SPFTSQL_CACHE", str(folder / "cache"))
        config = configuration({"serve.repair": "false", "generation.max_tokens": TOKENS})
        databases = _copies(chinook, folder)
        model = build_model(folder / "bench", schema_text(_catalogue["chinook0"].schema))
        try:
            url = start_endpoint(model, "bench", databases, config)
            ours = Side("endpoint", url, "bench")
            if options.only in ("chat", None):
                with vllm_serve(model) as bare:
                    figures |= _compared(bare, ours, options.rounds, "vllm_serve")
            if options.only in ("stock", None):
                with ray_serve_llm(model, url) as stock:
                    figures |= _compared(stock, ours, options.rounds, "ray_serve_llm")
            if options.only in ("sql", None):
                figures |= _samples(url, options.rounds)
                figures |= _cached(url, list(databases), model, config.prompt)
                figures |= _sql_overhead(chinook, folder, options.rounds)
        finally:
            end_session()
    print(json.dumps(figures))


def _compared(other: Side, ours: Side, rounds: int, key: str) -> dict[str, Any]:
    """Both sides in turns: times at each concurrency, throughput at the highest, first tokens at 1."""
    rows, figures = [], {}
    for concurrency, count in REQUESTS.items():
        _ask(other, concurrency, concurrency)  # warm
        _ask(ours, concurrency, concurrency)
        theirs, own = _turns(rounds, lambda side, c=concurrency, n=count: _ask(side, c, n), other, ours)
        more = [b.p50_ms - a.p50_ms for a, b in zip(theirs, own, strict=True)]
        times = ratio([t.p50_ms for t in own], [t.p50_ms for t in theirs])
        throughput = ratio([t.per_second for t in own], [t.per_second for t in theirs])
        rows.append([concurrency, _median(theirs), _median(own), f"{statistics.median(more):.1f}", times, throughput])
        figures[f"vs_{key}_p50_overhead_ms_{concurrency}"] = round(statistics.median(more), 2)
        figures[f"vs_{key}_p50_overhead_share_{concurrency}"] = round(times.median - 1, 4)
        figures[f"vs_{key}_throughput_{concurrency}"] = round(throughput.median, 4)
    theirs, own = _turns(rounds, lambda side: _ask(side, 1, REQUESTS[1], stream=True), other, ours)
    first = [b.first_p50_ms - a.first_p50_ms for a, b in zip(theirs, own, strict=True)]
    header = ["concurrency", f"{other.name}, p50 ms", "endpoint, p50 ms", "more ms", "times", "throughput"]
    print(f"\n/v1/chat/completions, {TOKENS} tokens, beside {other.name}\n\n{markdown(rows, header)}")
    before, after = (statistics.median(t.first_p50_ms for t in side) for side in (theirs, own))
    print(f"\nFirst token: {before:.1f} ms there, {after:.1f} ms here.")
    if key == "vllm_serve":
        figures |= {
            "vs_vllm_serve_throughput": figures["vs_vllm_serve_throughput_32"],
            "p50_overhead_ms": max(figures[f"vs_vllm_serve_p50_overhead_ms_{c}"] for c in (1, 8)),
            "p50_overhead_share": max(figures[f"vs_vllm_serve_p50_overhead_share_{c}"] for c in (1, 8)),
            "ttft_overhead_ms": round(statistics.median(first), 2),
        }
    return figures


def _turns(rounds: int, run: Callable[[Side], Times], *sides: Side) -> tuple[list[Times], list[Times]]:
    kept: dict[str, list[Times]] = {side.name: [] for side in sides}

    def one(side: Side) -> float:
        times = run(side)
        kept[side.name].append(times)
        return times.wall

    in_turns(rounds, *(lambda side=side: one(side) for side in sides))
    first, second = (kept[side.name] for side in sides)
    return first, second


_asked = 0


def _ask(side: Side, concurrency: int, count: int, stream: bool = False) -> Times:
    """Questions that nobody has asked before, so that no prefix cache knows more than the template's head."""
    global _asked
    _asked += count
    questions = [
        f"{n * 7919 % 10007} customers of city {n} bought tracks of genre {n % 11}"
        for n in range(_asked - count, _asked)
    ]
    return chat(side, questions, concurrency, stream)


def _samples(url: str, rounds: int) -> dict[str, Any]:
    """Eight samples beside one, one request at a time; the schema is in the prefix cache for both."""

    def run(n: int) -> float:
        bodies = [{"database": "chinook0", "question": q, "n": n} for q in LESSONS]
        return sql(url, bodies, 1)[0].wall

    run(1), run(8)
    one, eight = in_turns(rounds, lambda: run(1), lambda: run(8))
    found: Ratio = ratio(eight, one)
    print(f"\n/v1/sql, 8 samples over 1: {found} times")
    return {"n8_over_n1": round(found.median, 3)}


def _cached(url: str, names: Sequence[str], model: Path, prompt: Any) -> dict[str, Any]:
    """The share of schema tokens that are found in the prefix cache, once each database has been asked about."""
    import httpx

    def cached() -> float:
        page = httpx.get(f"{url}/metrics", timeout=60).text
        return sum(float(line.split()[-1]) for line in page.splitlines() if 'tokens_total{kind="cached"' in line)

    sql(url, [{"database": name, "question": "How many tracks?"} for name in names], 1)
    bodies = [{"database": names[(7 * i) % len(names)], "question": f"{i}. {q}"} for i, q in enumerate([*LESSONS] * 12)]
    before = cached()
    sql(url, bodies, 8)
    found = cached() - before
    total = sum(_schema_tokens(names, model, prompt)[body["database"]] for body in bodies)
    print(f"\nSchema tokens found in the prefix cache: {found:.0f} of {total} ({found / total:.1%})")
    return {"prefix_cache_share": round(found / total, 4)}


_tokens: dict[str, int] = {}


def _schema_tokens(names: Sequence[str], model: Path, prompt: Any) -> dict[str, int]:
    """Tokens of the part of the prompt that is the same for all questions about a database."""
    if not _tokens:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model)
        builder = PromptBuilder(prompt, model)
        for name, database in _catalogue.items():
            head = builder.text_to_sql(database, "alpha").partition("alpha")[0]
            _tokens[name] = len(tokenizer(head, add_special_tokens=False).input_ids)
    return _tokens


_catalogue: dict[str, Any] = {}


def _sql_overhead(chinook: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """What a request takes beyond the model's own time, with statements that run and have rows."""
    config = configuration({"generation.max_tokens": 128})
    model = _learnt(folder / "learnt", chinook, config)
    url = start_endpoint(model, "learnt", {"chinook0": str(chinook)}, config)
    bodies = [{"database": "chinook0", "question": question} for question in LESSONS] * 4
    sql(url, bodies, 1)
    own: list[float] = []
    outside: list[float] = []
    right = total = 0
    for _ in range(rounds):
        times, answers = sql(url, bodies, 1)
        own += [answer["timings"]["total_ms"] - answer["timings"]["generate_ms"] for answer in answers]
        outside += [s * 1000 - a["timings"]["generate_ms"] for s, a in zip(times.seconds, answers, strict=True)]
        right += sum(answer["verdict"]["status"] == "ran" for answer in answers)
        total += len(answers)
    print(
        f"\n/v1/sql beyond the model's own time: {statistics.median(own):.1f} ms in the endpoint, "
        f"{statistics.median(outside):.1f} ms with HTTP; {right} of {total} statements ran"
    )
    return {
        "sql_overhead_ms": round(statistics.median(own), 2),
        "sql_overhead_with_http_ms": round(statistics.median(outside), 2),
        "sql_ran_share": round(right / total, 3),
    }


def _learnt(folder: Path, chinook: Path, config: Any) -> Path:
    """A small model that knows the statements of the questions by heart."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from serve.app import serve_catalogue

    scratch = ScratchConfig(hidden_size=64, layers=2, heads=2, intermediate_size=128, vocabulary=2000)
    database = serve_catalogue({"chinook0": str(chinook)}, config)["chinook0"]
    from spftsql.training.scratch import build_scratch_model

    texts = [schema_text(database.schema), *(text for pair in LESSONS.items() for text in pair)] * 20
    build_scratch_model(scratch, config.model.max_length, texts, folder, seed=1)
    tokenizer, causal = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompts = PromptBuilder(config.prompt, folder)
    rows = [
        (tokenizer(prompts.text_to_sql(database, question)).input_ids, tokenizer(statement).input_ids)
        for question, statement in LESSONS.items()
    ]
    optimizer = torch.optim.AdamW(causal.parameters(), lr=3e-3)
    for step in range(400):
        prompt, answer = rows[step % len(rows)]
        ids = torch.tensor([[*prompt, *answer, tokenizer.eos_token_id]])
        labels = ids.clone()
        labels[0, : len(prompt)] = -100
        causal(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    causal.save_pretrained(folder)
    return folder


def _copies(chinook: Path, folder: Path) -> dict[str, str]:
    """Ten databases with schemas of their own: each has one more table than Chinook, before all others."""
    databases = {}
    for number in range(DATABASES):
        path = folder / f"chinook{number}.sqlite"
        shutil.copy(chinook, path)
        with sqlite3.connect(path) as connection:
            for table in ("PlaylistTrack", "Playlist", "InvoiceLine", "Employee"):  # room for the prompt
                connection.execute(f"DROP TABLE {table}")
            connection.execute(f"CREATE TABLE A{number} (id INTEGER PRIMARY KEY, branch{number} TEXT)")
        databases[f"chinook{number}"] = str(path)
    from serve.app import serve_catalogue

    _catalogue.update(serve_catalogue(databases, configuration()))
    return databases


def _chinook() -> Path:
    root = os.environ.get("SPFTSQL_DATA")
    if not root:
        raise SystemExit("set SPFTSQL_DATA to the folder of the benchmark data")
    return Path(root) / "samples" / "chinook" / "Chinook_Sqlite.sqlite"


def _median(rounds: Sequence[Times]) -> str:
    return f"{statistics.median(times.p50_ms for times in rounds):.1f}"


if __name__ == "__main__":
    main()
