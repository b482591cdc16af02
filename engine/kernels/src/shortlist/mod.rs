//! What the host needs of rows of logits to draw their tokens: on a GPU lists of a few hundred
//! numbers, read back at once for all rows. There is no other way: on the CPU, and where the
//! reference is asked for, whole rows are at hand.
//!
//! [`SampleRequest`] says what is wanted of a row, [`Shortlist`] what came back, [`decide`] finishes
//! a draw or says that it needs the row.

#[cfg(feature = "cube")]
mod cube;
#[cfg(not(feature = "cube"))]
mod never;

use burn::tensor::Tensor;

use crate::route::route;

#[cfg(feature = "cube")]
pub use cube_kernels::{
    Candidate, Decision, Draw, MAX_LIST, Noise, SampleRequest, Shortlist, decide,
};
#[cfg(not(feature = "cube"))]
pub use never::{Candidate, Decision, Draw, MAX_LIST, Noise, SampleRequest, Shortlist, decide};

/// Whether [`shortlist`] makes lists of this tensor.
pub fn has_shortlists(logits: &Tensor<2>) -> bool {
    route!(logits, cpu: false, cube: true, reference: false)
}

/// Lists of the rows of `logits`, F32 `[P, V]`, one request per row; `None` where nothing makes
/// them. Waits for the device: the read-back of a step.
///
/// # Panics
/// If a request names tokens beyond `V`, edits that do not ascend, or too long a list.
pub fn shortlist(logits: &Tensor<2>, requests: &[SampleRequest<'_>]) -> Option<Vec<Shortlist>> {
    let [num_rows, _] = logits.dims();
    assert_eq!(requests.len(), num_rows, "requests");
    route!(
        logits,
        cpu: None,
        cube: Some(cube::shortlist(logits, requests)),
        reference: None,
    )
}
