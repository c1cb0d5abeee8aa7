"""Verifying statements by execution: the worker, and the two ways to run many of them (threads here, a pool on Ray)."""
