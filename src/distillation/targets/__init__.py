"""What a teacher says of every position of a batch, in the one form that teachers, caches and students share."""
