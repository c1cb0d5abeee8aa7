"""Which tables, columns and values of a database a question is about, found by words alone."""
