"""Ray itself: the session of a run, a local cluster of several nodes, the number of verifier workers."""
