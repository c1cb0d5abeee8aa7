"""What one submits with `ray job submit`: one short file per job, and the recipes."""
