//! A text as CubeCL launches it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use cubecl::ir::attributes::BufferIOAttr;
use cubecl::ir::metadata::Info;
use cubecl::ir::{AddressType, ElemType, Scope, UIntKind};
use cubecl::prelude::*;
use cubecl::server::{KernelArguments, MetadataBindingInfo};
use cubecl::{CubeKernel, PrecompiledSource};

use super::Text;
use super::library::{Product, ProductKernel};
use super::plan::{Launch, Role};
use crate::{Buffer, Client};

pub(super) fn launch(client: &Client, launch: &Launch, buffers: &BTreeMap<Role, Buffer>) {
    let last = launch.arguments.len() - 1;
    let arguments = launch.arguments.iter().enumerate().map(|(at, role)| {
        let io = if at == last {
            BufferIOAttr::WriteOnly
        } else {
            BufferIOAttr::ReadOnly
        };
        (&buffers[role], io)
    });
    launch_text(
        client,
        &launch.text,
        launch.grid,
        &arguments.collect::<Vec<_>>(),
        &launch.sizes,
    );
}

/// Launches a text over these buffers; `sizes` follow them by value.
pub(super) fn launch_text(
    client: &Client,
    text: &Text,
    [x, y, z]: [u32; 3],
    buffers: &[(&Buffer, BufferIOAttr)],
    sizes: &[u32],
) {
    let mut arguments = KernelArguments::new();
    for (buffer, io) in buffers {
        arguments = arguments.with_buffer_io(buffer.handle().clone().binding(), *io);
    }
    // Passed by value, behind the pointers: CUDA takes as many bytes as the text declares.
    let words = sizes.chunks(2).map(|pair| {
        let high = pair.get(1).copied().unwrap_or(0);
        u64::from(pair[0]) | u64::from(high) << 32
    });
    let words: Vec<u64> = words.collect();
    let num_static = words.len();
    arguments.info = MetadataBindingInfo::new(words, num_static);
    let kernel = TextKernel(text.clone());
    client.launch(Box::new(kernel), CubeCount::Static(x, y, z), arguments);
}

/// Launches a product that whoever serves launches hands to a library: over weights, x, workspace and
/// result.
pub(super) fn launch_product(client: &Client, product: Product, [w, x, space, out]: [&Buffer; 4]) {
    let mut arguments = KernelArguments::new();
    for (buffer, io) in [
        (w, BufferIOAttr::ReadOnly),
        (x, BufferIOAttr::ReadOnly),
        (space, BufferIOAttr::WriteOnly),
        (out, BufferIOAttr::WriteOnly),
    ] {
        arguments = arguments.with_buffer_io(buffer.handle().clone().binding(), io);
    }
    let kernel = Box::new(ProductKernel(product));
    client.launch(kernel, CubeCount::Static(1, 1, 1), arguments);
}

/// What a kernel that CubeCL did not write is to it.
pub(super) fn nothing(num_threads: u32) -> KernelDefinition {
    let settings = KernelSettings::new(
        CubeDim::new_1d(num_threads).0,
        ExecutionMode::Checked,
        AddressType::U32,
    );
    KernelDefinition {
        body: Scope::root(settings.clone()),
        settings,
        info: Info::default(),
    }
}

/// Its addresses, of which CubeCL makes nothing.
pub(super) fn address_type() -> ElemType {
    ElemType::UInt(UIntKind::U32)
}

struct TextKernel(Text);

impl KernelMetadata for TextKernel {
    fn id(&self) -> KernelId {
        // Compiled kernels are kept by id, so it must cover the text.
        let mut hasher = DefaultHasher::new();
        self.0.source().hash(&mut hasher);
        KernelId::new::<Self>()
            .info((self.0.name.clone(), hasher.finish()))
            .cube_dim(CubeDim::new_1d(self.0.num_threads).0)
    }

    fn address_type(&self) -> ElemType {
        address_type()
    }
}

impl CubeKernel for TextKernel {
    /// Nothing: the text is the kernel.
    fn define(&self) -> KernelDefinition {
        nothing(self.0.num_threads)
    }

    fn source(&self) -> Option<PrecompiledSource> {
        Some(PrecompiledSource {
            source: self.0.source(),
            entrypoint_name: self.0.name.clone(),
            lang: "cuda",
        })
    }
}
