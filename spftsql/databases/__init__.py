"""Databases: their files, schemas and values."""
