"""Execution of SQL that nobody has vouched for: policy, limits, one runner per engine, the killable child process.

The process is the promise: a statement runs in a child with resource limits, killed and replaced when it is past its
hard deadline. The guards inside the child (authorizer, limits, progress handler) are there for speed. Only light
modules are imported here, because the child imports this package whenever one is replaced.
"""
