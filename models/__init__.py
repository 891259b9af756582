"""Pure torch: tensors in, tensors out."""
