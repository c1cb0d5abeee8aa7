"""Throughput, cache hits and memory of the generation stage."""
