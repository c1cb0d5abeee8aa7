"""The embedded demonstration: a generated shop database and labelled questions about it."""
