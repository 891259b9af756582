"""The student: head, losses, weights taken from a teacher."""
