//! The shape that the Mamba-2 kernels share.

/// Shape of a Mamba-2 mixer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MambaShape {
    /// Number of heads.
    pub heads: usize,
    /// Channels per head.
    pub head_dim: usize,
    /// Groups that share B and C; head `h` reads group `h / (heads / groups)`.
    pub groups: usize,
    /// State columns `N`.
    pub state: usize,
    /// Convolution window `K`.
    pub conv_kernel: usize,
}

impl MambaShape {
    /// Channels of the mixer: `heads * head_dim`.
    pub fn inner(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Channels under the convolution: x, B and C.
    pub fn conv_dim(&self) -> usize {
        self.inner() + 2 * self.groups * self.state
    }

    /// Columns of the input projection: z, x, B, C and dt.
    pub fn projected(&self) -> usize {
        self.inner() + self.conv_dim() + self.heads
    }
}
