"""Models that write: the engines, and the stages that run them over datasets of requests."""
