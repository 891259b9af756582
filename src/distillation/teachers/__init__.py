"""Teachers: direct, cached, recording or over the network, in one form."""
