//! Benchmarks of the crates that know no tensor: `cargo bench -p nemoserve-benches-pure`.
