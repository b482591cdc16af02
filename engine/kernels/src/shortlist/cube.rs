//! Shortlists of a GPU's logits.

use burn::tensor::Tensor;
use cube_kernels::{SampleRequest, Shortlist};

use crate::cube::{elements, view};
use crate::read_back;

/// Launches the selection and waits for it.
pub(super) fn shortlist(logits: &Tensor<2>, requests: &[SampleRequest<'_>]) -> Vec<Shortlist> {
    let [num_rows, vocab_size] = logits.dims();
    let logits = view(logits);
    let client = &logits.client;
    let pending =
        cube_kernels::shortlist(client, &elements(&logits), num_rows, vocab_size, requests);
    read_back::note(pending.num_bytes());
    pending.read(client)
}
