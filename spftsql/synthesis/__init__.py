"""SQL synthesis: canonical SQL, templates from labelled SQL, and templates filled from a database."""
