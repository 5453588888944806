"""Stands for a migration: a status other than 0 stops the release."""

print("nothing to migrate")
