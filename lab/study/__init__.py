"""Studies: variants of a model trained for equal compute, and the page of the results."""
