"""What a run would take on other machines: stages as queues, with rates that were measured or are assumed."""
