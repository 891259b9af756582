"""The one training engine: trains, evaluates, resumes and generates whatever is a task."""
