//! A CUDA device without a GPU: it has an architecture's properties and no memory, and writes down
//! the CUDA C++ of every kernel that is launched on it.
//!
//! The properties and compiler options are those that cubecl-cuda 0.11.3 gives a device in
//! `runtime.rs`; reading a buffer back fails, as a step that waits for the device must not pass.
#![allow(unsafe_code)] // The trait's launch is an unsafe function; this one runs nothing.

use std::any::Any;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cube_kernels::Client;
use cubecl::MemoryAllocationMode;
use cubecl::bytes::Bytes;
use cubecl::future::DynFut;
use cubecl::ir::features::{Features, Plane, Tma};
use cubecl::ir::{
    AddressType, DeviceIdentity, DeviceProperties, ElemType, FloatKind, HardwareProperties,
    MemoryDeviceProperties, MmaProperties, OpaqueType, TargetProperties, VectorSize,
};
use cubecl::profile::{ProfileDuration, TimingMethod};
use cubecl::server::{
    BufferBinding, CopyDescriptor, CubeCount, Handle, IoError, KernelArguments, MemoryLayout,
    MemoryLayoutDescriptor, MemoryLayoutPolicy, ProfileError, ProfilingToken, Server,
    ServerCommunication, ServerError, ServerStorage, ServerUtilities,
};
use cubecl::{Compiler, CubeKernel, StreamMemoryReport};
use cubecl_core::cmma::MatrixLayout;
use cubecl_core::device::{DeviceId, DeviceService, ServiceId};
use cubecl_core::environment::backtrace::BackTrace;
use cubecl_core::environment::stream::StreamId;
use cubecl_cpp::cuda::arch::CudaArchitecture;
use cubecl_cpp::cuda::mma::{CudaCmmaCompiler, manual::contiguous_elements_cuda};
use cubecl_cpp::shared::{
    CompilationOptions, CppCompiler, CppSupportedFeatures, register_mma_features,
    register_scaled_mma_features, register_wmma_features,
};
use cubecl_cpp::target::Cuda;
use cubecl_runtime::dry_run::LaunchMode;
use cubecl_runtime::kernel::define_kernel;
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::ManagedMemoryHandle;
use cubecl_runtime::storage::{ComputeStorage, ManagedResource, StorageHandle, StorageId};

/// A kernel as it was launched.
#[derive(Debug)]
pub(crate) struct Launch {
    /// Its CUDA C++, or why there is none.
    pub(crate) text: Result<String, String>,
    /// Cubes, where the host knows their number.
    pub(crate) cubes: Option<(u32, u32, u32)>,
    /// Units of a cube; `None` for hand-written text, which says so itself.
    pub(crate) units: Option<u32>,
    /// Bytes of shared memory that the launch reserves, beyond what the text declares.
    pub(crate) shared: usize,
    /// A call of a library, described in place of a text.
    pub(crate) is_call: bool,
}

static LAUNCHES: Mutex<Vec<Launch>> = Mutex::new(Vec::new());

/// The device of an architecture such as 90, for sm_90a.
pub(crate) fn client(arch: u16) -> Client {
    Client::load::<Recorder>(DeviceId {
        type_id: 0,
        index_id: arch,
    })
}

/// Launches are written down in one place, so tests take turns.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was launched since the last call.
pub(crate) fn launches(client: &Client) -> Vec<Launch> {
    cubecl::future::block_on(client.sync()).expect("nothing of the recorder fails");
    std::mem::take(&mut LAUNCHES.lock().unwrap())
}

#[derive(Debug)]
pub(crate) struct Recorder {
    utilities: Arc<ServerUtilities>,
    options: CompilationOptions,
}

impl DeviceService for Recorder {
    fn init(device: DeviceId) -> Self {
        let arch = u32::from(device.index_id);
        let (utilities, _) = ServerUtilities::init(
            ServiceId::of::<Self>(device),
            "cuda",
            properties(arch),
            TargetProperties {
                mma: MmaProperties {
                    register_size_bits: 32,
                    const_plane_size: 32,
                    register_layout_a: MatrixLayout::RowMajor,
                    register_layout_b: MatrixLayout::ColMajor,
                    register_layout_acc: MatrixLayout::RowMajor,
                    register_duplication_a: 1,
                    register_duplication_b: 1,
                    register_duplication_acc: 1,
                    contiguous_elements: cubecl::ir::ContiguousElements::new(
                        contiguous_elements_cuda,
                    ),
                },
            },
            Arc::new(ServerLogger::default()),
            Whole,
        );
        let options = CompilationOptions {
            supports_features: CppSupportedFeatures {
                fast_math: true,
                dp4a: true,
                grid_constants: true,
                fast_tanh: true,
                clusters: arch >= 90,
                elect_sync: arch >= 90,
            },
            ..Default::default()
        };
        Self {
            utilities: Arc::new(utilities),
            options,
        }
    }

    fn utilities(&self) -> Arc<dyn Any + Send + Sync> {
        self.utilities.clone()
    }
}

fn properties(version: u32) -> DeviceProperties {
    let shared = match version {
        80 => 163,
        120 => 99,
        _ => 227,
    };
    let arch = CudaArchitecture {
        version,
        tensor_cores: true,
    };
    let memory = 80 << 30;
    let mut properties = DeviceProperties::new(
        Features::default(),
        MemoryDeviceProperties::new(memory / 4, 512).with_max_memory(memory),
        HardwareProperties {
            load_width: 128,
            vector_register_count: None,
            plane_size_min: 32,
            plane_size_max: 32,
            max_bindings: 1024,
            max_shared_memory_size: shared << 10,
            max_cube_count: (0x7fff_ffff, 0xffff, 0xffff),
            max_units_per_cube: 1024,
            max_cube_dim: (1024, 1024, 64),
            num_streaming_multiprocessors: Some(132),
            num_tensor_cores: Some(4),
            min_tensor_cores_dim: Some(8),
            num_cpu_cores: None,
            last_level_cache_size: None,
            max_vector_size: VectorSize::MAX,
            cube_mma_reserved_shared_memory: 0,
        },
        TimingMethod::Device,
        DeviceIdentity {
            name: "recorder".into(),
            fingerprint: format!("ptx_sm{version}"),
            physical: None,
        },
    );
    cubecl_cpp::register_supported_types(&mut properties);
    properties.register_address_type(AddressType::U64);
    properties.register_opaque_type(OpaqueType::Barrier);
    let features = &mut properties.features;
    for plane in [Plane::Sync, Plane::Ops, Plane::NonUniformControlFlow] {
        features.plane.insert(plane);
    }
    for half in [FloatKind::F16, FloatKind::BF16] {
        features.matmul.ldmatrix.insert(ElemType::Float(half));
        if version >= 90 {
            features.matmul.stmatrix.insert(ElemType::Float(half));
        }
    }
    features.copy_async = true;
    features.memory_reinterpret = true;
    features.alignment = true;
    features.device_memory_scope = true;
    if version >= 90 {
        features.tma.insert(Tma::Base);
        features.cube_cluster = true;
        properties.register_opaque_type(OpaqueType::TensorMap);
    }
    let cmma = CudaCmmaCompiler::Cpp.supported_cmma_combinations(&arch);
    register_wmma_features(cmma, &mut properties);
    let mma = cubecl_cpp::cuda::supported_mma_combinations(&arch);
    register_mma_features(mma, &mut properties);
    let scaled = cubecl_cpp::cuda::supported_scaled_mma_combinations(&arch);
    register_scaled_mma_features(scaled, &mut properties);
    properties
}

impl ServerCommunication for Recorder {}

impl Server for Recorder {
    unsafe fn launch(
        &mut self,
        kernel: Box<dyn CubeKernel>,
        count: CubeCount,
        _bindings: KernelArguments,
        _stream: StreamId,
        _mode: LaunchMode,
    ) {
        let cubes = match count {
            CubeCount::Static(x, y, z) => Some((x, y, z)),
            CubeCount::Dynamic(_) => None,
        };
        let mut launch = Launch {
            text: Err(String::new()),
            cubes,
            units: None,
            shared: 0,
            is_call: false,
        };
        launch.text = if let Some(own) = kernel.source() {
            // What the host carries out has nothing to compile.
            launch.is_call = own.lang != "cuda";
            Ok(own.source)
        } else {
            define_kernel(kernel.as_ref())
                .and_then(|definition| {
                    let dim = definition.settings.cube_dim;
                    launch.units = Some(dim.x * dim.y * dim.z);
                    CppCompiler::<Cuda>::default().compile(definition, &self.options)
                })
                .map(|compiled| {
                    launch.shared = compiled.shared_memory_size;
                    compiled.source
                })
                .map_err(|error| error.to_string())
        };
        LAUNCHES.lock().unwrap().push(launch);
    }

    fn initialize_memory(
        &mut self,
        _memory: ManagedMemoryHandle,
        _size: u64,
        _stream: StreamId,
    ) -> Result<(), ServerError> {
        Ok(())
    }

    fn read(
        &mut self,
        _from: Vec<CopyDescriptor>,
        _stream: StreamId,
    ) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        Box::pin(async { Err(none().into()) })
    }

    fn write(&mut self, _to: Vec<(CopyDescriptor, Bytes)>, _stream: StreamId) {}

    fn sync(
        &mut self,
        _of: Vec<BufferBinding>,
        _stream: StreamId,
    ) -> DynFut<Result<(), ServerError>> {
        Box::pin(async { Ok(()) })
    }

    fn check(&mut self, _of: Vec<BufferBinding>, _stream: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn flush(&mut self, _stream: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn logger(&self) -> Arc<ServerLogger> {
        self.utilities.logger.clone()
    }

    fn utilities(&self) -> Arc<ServerUtilities> {
        self.utilities.clone()
    }

    fn memory_report(&mut self, _stream: StreamId) -> Option<StreamMemoryReport> {
        None
    }

    fn memory_cleanup(&mut self, _stream: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn start_profile(&mut self, _stream: StreamId) -> Result<ProfilingToken, ServerError> {
        Err(none().into())
    }

    fn end_profile(
        &mut self,
        _stream: StreamId,
        _token: ProfilingToken,
    ) -> Result<ProfileDuration, ProfileError> {
        Err(ProfileError::NotMeasured {
            backtrace: BackTrace::capture(),
        })
    }

    fn allocation_mode(&mut self, _mode: MemoryAllocationMode, _stream: StreamId) {}
}

fn none() -> IoError {
    IoError::UnsupportedIoOperation {
        backtrace: BackTrace::capture(),
    }
}

/// Every buffer its own allocation, without pitch.
struct Whole;

impl MemoryLayoutPolicy for Whole {
    fn apply(
        &self,
        service: ServiceId,
        stream: StreamId,
        wanted: &[MemoryLayoutDescriptor],
    ) -> (Handle, Vec<MemoryLayout>) {
        let size = |one: &MemoryLayoutDescriptor| {
            (one.shape.iter().product::<usize>() * one.elem_size) as u64
        };
        let base = Handle::new(service, stream, wanted.iter().map(size).sum());
        let layouts = wanted
            .iter()
            .map(|one| {
                let rank = one.shape.len();
                let strides: Vec<usize> = (0..rank)
                    .map(|at| one.shape.iter().skip(at + 1).product())
                    .collect();
                MemoryLayout::new(Handle::new(service, stream, size(one)), strides)
            })
            .collect();
        (base, layouts)
    }
}

/// There is none.
#[derive(Debug)]
pub(crate) struct NoStorage;

impl ComputeStorage for NoStorage {
    type Resource = ();

    fn alignment(&self) -> usize {
        512
    }

    fn get(&mut self, _handle: &StorageHandle) -> Result<(), IoError> {
        Err(none())
    }

    fn alloc(&mut self, _size: u64) -> Result<StorageHandle, IoError> {
        Err(none())
    }

    fn dealloc(&mut self, _id: StorageId) {}

    fn flush(&mut self) {}

    fn bytes_allocated(&self) -> u64 {
        0
    }
}

impl ServerStorage for Recorder {
    type Storage = NoStorage;

    fn get_resource(
        &mut self,
        _binding: BufferBinding,
        _stream: StreamId,
    ) -> Result<ManagedResource<()>, ServerError> {
        Err(none().into())
    }
}
