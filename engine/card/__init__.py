"""What a run was and what it brought, in a page beside it that people read."""
