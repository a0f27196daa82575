"""The report of a validation: its model, and its tables, pages and files for people and for CI."""
