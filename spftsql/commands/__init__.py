"""The functions behind the commands of `spftsql`, by what they are about; `spftsql.cli` puts them together."""
