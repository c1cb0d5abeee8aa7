"""Methods side by side: from the same start, on the same questions, over several seeds."""
