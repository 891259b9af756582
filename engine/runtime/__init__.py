"""What the machine gives: device, ranks, seeds, signals."""
