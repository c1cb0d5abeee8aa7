"""`python -m benchmarks.generation.bare REQUESTS CACHE_BYTES`: `vllm.LLM.generate` alone, in a process of its own.

Loads the model with the options of the stage's engine. Then, for every line on standard input, it generates all prompts
once and prints seconds and tokens as JSON: for `text` it is given text and gives text, for `ids` it is given token ids
that were made before and leaves its answers as ids.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from benchmarks.generation.prompts import MAX_LENGTH
from benchmarks.measure import peak_mib
from spftsql.generation import vllm_options
from spftsql.recipes import validate
from spftsql.records import GenerationRequest, read_records


def main() -> None:
    """Answers one line after another until the input ends."""
    rows = read_records(Path(sys.argv[1]), GenerationRequest)
    os.environ.update(vllm_options.environment(cpu=True))
    from vllm import LLM, SamplingParams

    config = validate({"name": "b", "data": {"benchmark": "demo"}, "model": {"path": rows[0].model}}, "benchmark")
    options = vllm_options.engine_options(config, rows[0].model, MAX_LENGTH, 0, cpu=True)
    llm = LLM(**options | {"skip_tokenizer_init": False, "kv_cache_memory_bytes": int(sys.argv[2])})
    prompts = [row.prompt for row in rows]
    tokenizer = llm.get_tokenizer()
    ids = [{"prompt_token_ids": tokenizer(text, add_special_tokens=False)["input_ids"]} for text in prompts]

    def sampling(detokenize: bool) -> list[SamplingParams]:
        return [
            SamplingParams(temperature=0.0, max_tokens=row.max_tokens, seed=row.seed, detokenize=detokenize)
            for row in rows
        ]

    llm.generate(prompts[:1], sampling(True)[:1], use_tqdm=False)
    print("ready", flush=True)
    for line in sys.stdin:
        asked, how = (prompts, sampling(True)) if line.strip() == "text" else (ids, sampling(False))
        llm.reset_prefix_cache()
        started = time.perf_counter()
        outputs = llm.generate(asked, how, use_tqdm=False)
        seconds = time.perf_counter() - started
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        print(json.dumps({"seconds": seconds, "tokens": tokens, "peak_mib": peak_mib(os.getpid())}), flush=True)


if __name__ == "__main__":
    main()
