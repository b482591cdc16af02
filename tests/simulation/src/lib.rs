//! The simulation of scheduler and caches.
