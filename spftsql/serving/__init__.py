"""The endpoint from its outside: started, asked, and what guards it (keys and grants); what serves is in `serve/`."""
