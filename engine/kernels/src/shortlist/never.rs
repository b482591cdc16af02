//! The types of shortlists in builds for processors only, where nothing makes one.

use std::convert::Infallible;

/// Most tokens of a list.
pub const MAX_LIST: usize = 256;

/// A token and its raw logit.
pub type Candidate = (u32, f32);

/// What is wanted of one row.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)] // As in `cube-kernels`.
pub struct SampleRequest<'a> {
    pub mask: Option<&'a [u32]>,
    pub edited: &'a [u32],
    pub wanted: &'a [u32],
    pub num_top: usize,
    pub num_likely: usize,
    pub noise: Option<Noise>,
}

/// Gumbel noise for one row.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // As in `cube-kernels`.
pub struct Noise {
    pub stream: u64,
    pub temperature: f32,
    pub count: usize,
}

/// How a token is drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)] // As in `cube-kernels`.
pub struct Draw {
    pub temperature: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
}

/// What a shortlist says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // As in `cube-kernels`.
pub enum Decision {
    Token(u32),
    BadLogits,
    NothingLeft,
    ReadRow,
}

/// What never came back of a row.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // As in `cube-kernels`.
pub struct Shortlist {
    pub is_sound: bool,
    pub max: f32,
    pub sum: f32,
    pub top: Vec<Candidate>,
    pub likely: Vec<Candidate>,
    pub noisy: Vec<Candidate>,
    pub edited: Vec<f32>,
    pub wanted: Vec<f32>,
    never: Infallible,
}

/// No list, no decision.
pub fn decide(
    list: &Shortlist,
    _edited: &[Candidate],
    _v: usize,
    _draw: &Draw,
    _gumbel: impl Fn(u32) -> f64,
) -> Decision {
    match list.never {}
}
