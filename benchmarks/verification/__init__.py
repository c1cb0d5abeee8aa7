"""How fast verdicts are: beside a bare loop, the official evaluator, bare actors, and with more and more workers."""
