//! Benchmarks live in their own files beside this one.
