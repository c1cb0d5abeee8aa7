"""`python -m benchmarks.generation`: prints tables and, as its last line, one JSON object.

Spider's questions (found through SPFTSQL_DATA) as prompts for a small random model: the stage under Ray Data beside
`vllm.LLM.generate` alone in turns, the same rows shuffled, the prompts that schema linking writes, and two engines
side by side. Starting processes and loading the model is left out on both sides; planning, reading, tokenising,
writing and what Ray needs between units is not.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from benchmarks.generation import prompts, sides
from benchmarks.measure import machine, markdown, ratio
from spftsql.config import PromptConfig
from spftsql.generation.vllm_options import cache_bytes
from spftsql.recipes import resolve

_THREADS = 1  # of an engine: `generation.cpus` by default; with more threads than free cores they wait for each other
_LINKED_DATABASES = 12
_CUT_TOKENS = 150  # a schema budget below most of Spider's schemas


def main() -> None:
    """Runs all parts, one after another."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__)
    parser.add_argument("--databases", type=int, default=64)
    parser.add_argument("--questions", type=int, default=48, help="on each database")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side, in turns")
    parser.add_argument("--small-cache", type=int, default=16_384, help="tokens of a cache that schemas compete for")
    given = parser.parse_args()
    data = os.environ.get("SPFTSQL_DATA")
    if not data:
        raise SystemExit("benchmarks.generation: set SPFTSQL_DATA to the folder of the benchmark data")
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SPFTSQL_CACHE"] = f"{folder}/cache"
        figures = _measure(Path(data), Path(folder), given)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


def _measure(data: Path, folder: Path, given: argparse.Namespace) -> dict[str, float]:
    from spftsql.cluster.session import end_session, ensure_session

    questions = prompts.spider_questions(data, given.databases, given.questions)
    catalogue = prompts.spider_catalogue(data, list(questions))
    model = prompts.small_model(questions, catalogue, folder / "model")
    settings = [f"model.path={model}", "model.scratch=null", f"model.max_length={prompts.MAX_LENGTH}"]
    settings += ["generation.engine=vllm", "cluster.cpus=2", "cluster.dashboard=false"]
    config = resolve("demo", settings)
    one, two = sides.with_engines(config, 1, _THREADS), sides.with_engines(config, 2, _THREADS)
    full = prompts.requests(questions, catalogue, model, PromptConfig(linking=False), given.max_tokens)
    schema = prompts.schema_tokens(full, model)
    token = cache_bytes(str(model), prompts.MAX_LENGTH) // (64 * prompts.MAX_LENGTH)
    large, small = 64 * prompts.MAX_LENGTH * token, given.small_cache * token
    per_schema = {row.db_id: schema[row.id] for row in full}
    print(
        f"{len(full)} prompts on {len(questions)} databases; schemas of {min(per_schema.values())} to "
        f"{max(per_schema.values())} tokens, {sum(per_schema.values())} together; caches of {large // token} and "
        f"{given.small_cache} tokens; {given.max_tokens} tokens of answer",
        flush=True,
    )
    ensure_session(config)
    rows: list[tuple[object, ...]] = []

    def stage(name: str, prompts_: list[prompts.GenerationRequest], cache: int, setting: object = one) -> sides.Outcome:
        tokens = schema if prompts_[0].id in schema and name != "linked" else prompts.schema_tokens(prompts_, model)
        outcome = sides.run_stage(prompts_, folder / "stage", setting, cache, tokens)  # type: ignore[arg-type]
        per_second = len(prompts_) / outcome.seconds
        rows.append((name, f"{outcome.seconds:.1f}", f"{per_second:.0f}", f"{outcome.hit_rate:.3f}", outcome.engines))
        print(rows[-1], flush=True)
        return outcome

    try:
        grouped: list[sides.Outcome] = []
        bare: dict[str, list[dict[str, float]]] = {"text": [], "ids": []}
        with sides.bare_vllm(full, folder, large, _THREADS) as alone:
            for _ in range(given.repeats):
                for form, runs in bare.items():
                    found = alone.run(form)
                    runs.append(found)
                    per_second = len(full) / found["seconds"]
                    rows.append((f"vLLM alone, {form}", f"{found['seconds']:.1f}", f"{per_second:.0f}", "", 1))
                    print(rows[-1], flush=True)
                grouped.append(stage("stage", full, large))
        mixed = prompts.shuffled(full)
        shuffled_large = stage("shuffled", mixed, large)
        grouped_small = stage("stage, small cache", full, small)
        shuffled_small = stage("shuffled, small cache", mixed, small)
        both = stage("two engines", full, large, two)
        some = {name: questions[name] for name in list(questions)[:_LINKED_DATABASES]}
        hits = []
        for budget in (PromptConfig().max_schema_tokens, _CUT_TOKENS):
            setting = PromptConfig(linking=True, max_schema_tokens=budget)
            linked = prompts.requests(some, catalogue, model, setting, given.max_tokens)
            tokens = prompts.schema_tokens(linked, model)
            outcome = sides.run_stage(linked, folder / "stage", one, large, tokens)
            hits.append(outcome.hit_rate)
            rows.append((f"linked, {budget} tokens of schema", f"{outcome.seconds:.1f}", "", f"{hits[-1]:.3f}", 1))
            print(rows[-1], flush=True)
    finally:
        end_session()
    print(markdown(rows, ("run", "seconds", "requests/s", "schema tokens from the cache", "engines")), flush=True)
    ours = [outcome.seconds for outcome in grouped]
    text, ids = (ratio([run["seconds"] for run in bare[form]], ours) for form in ("text", "ids"))
    print(f"stage over vLLM alone: {text} for text, {ids} for token ids", flush=True)
    print(f"tokens written: stage {grouped[0].tokens}, vLLM alone {bare['text'][0]['tokens']:.0f}", flush=True)
    return {
        "vs_bare_vllm": text.median,
        "vs_bare_vllm_low": text.low,
        "vs_bare_vllm_high": text.high,
        "vs_bare_vllm_ids": ids.median,
        "vs_bare_vllm_ids_low": ids.low,
        "vs_bare_vllm_ids_high": ids.high,
        "schema_token_hit_rate": min(outcome.hit_rate for outcome in grouped),
        "hit_rate_shuffled": shuffled_small.hit_rate,
        "hit_rate_small_cache": grouped_small.hit_rate,
        "hit_rate_shuffled_large_cache": shuffled_large.hit_rate,
        "shuffled_vs_grouped": grouped_small.seconds / shuffled_small.seconds,
        "hit_rate_two_engines": both.hit_rate,
        "databases_on_both_engines": both.split,
        "hit_rate_linked": hits[0],
        "hit_rate_linked_cut": hits[1],
        "peak_mib": both.peak_mib,
        "peak_mib_one_engine": grouped[0].peak_mib,
        "peak_mib_bare": bare["text"][-1]["peak_mib"],
    }


if __name__ == "__main__":
    main()
