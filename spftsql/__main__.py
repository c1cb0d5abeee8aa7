"""`python -m spftsql` is the `spftsql` command."""

from spftsql.cli import main

main()
