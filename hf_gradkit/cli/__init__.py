"""The `gradkit` command."""
