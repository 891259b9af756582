"""A teacher's knowledge into a student: corpus, teachers, caches, training, evaluation."""
