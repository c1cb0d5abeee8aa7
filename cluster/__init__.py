"""Where it runs: what is needed to bring up a cluster. The library works without it."""
