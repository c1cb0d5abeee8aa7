"""The endpoint beside bare `vllm serve` and `ray.serve.llm`'s stock application; what SQL adds to a model's time."""
