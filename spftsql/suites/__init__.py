"""Test suites: perturbed instances of a database that tell a right statement from a lucky one."""

from spftsql.suites.mutations import Mutant, mutants
from spftsql.suites.suite import Report, Suite, build_suite

__all__ = ["Mutant", "Report", "Suite", "build_suite", "mutants"]
