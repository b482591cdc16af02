//! The front end: speaks HTTP and text, knows no tensor.
