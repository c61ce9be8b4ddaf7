"""Benchmarks: programs that measure roomcast beside its peers, in one run."""
