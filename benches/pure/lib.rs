//! Benchmarks that build without an engine: `cargo bench -p nemoserve-benches-pure`.
