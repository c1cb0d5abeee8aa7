"""The endpoint: a Ray Serve application that answers questions with SQL that was executed."""
