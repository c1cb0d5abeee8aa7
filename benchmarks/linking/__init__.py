"""How well schema linking finds the tables, columns and values of the gold SQL, and how fast."""
