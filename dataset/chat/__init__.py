"""People's own conversations: from their files to a data set on disk, and back into documents."""
