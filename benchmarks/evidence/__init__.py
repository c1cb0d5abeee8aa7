"""A queue of experiments on the method: which part of it gains what, on which data, with its uncertainty."""
