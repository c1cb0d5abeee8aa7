"""What a run will need and cost: checked before it starts, counted, and beside what it took."""
