//! The device under test through cudarc's safe layer: a real one where there is a driver, softcuda elsewhere.

use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, DeviceRepr, DriverError, LaunchArgs, LaunchConfig,
    ValidAsZeroBits, sys,
};
use cudarc::nvrtc::Ptx;
use softcuda::report::{Fault, LaunchReport};
use std::sync::{Arc, Mutex, PoisonError};

/// A context and a stream of its own.
pub(crate) struct Device {
    /// The primary context of device 0.
    pub(crate) context: Arc<CudaContext>,
    /// A created stream.
    pub(crate) stream: Arc<CudaStream>,
}

/// Grid and block along x and y, and dynamic shared memory in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Blocks.
    pub(crate) grid: (u32, u32),
    /// Threads of a block.
    pub(crate) block: (u32, u32),
    /// Bytes.
    pub(crate) shared: u32,
}

/// So many blocks of so many threads along x, without dynamic shared memory.
pub(crate) fn shape(blocks: u32, threads: u32) -> Shape {
    Shape { grid: (blocks, 1), block: (threads, 1), shared: 0 }
}

impl Shape {
    /// The same with dynamic shared memory of so many bytes.
    pub(crate) fn with_shared(self, shared: u32) -> Self {
        Self { shared, ..self }
    }

    /// For cudarc.
    pub(crate) fn config(self) -> LaunchConfig {
        LaunchConfig {
            grid_dim: (self.grid.0, self.grid.1, 1),
            block_dim: (self.block.0, self.block.1, 1),
            shared_mem_bytes: self.shared,
        }
    }
}

/// The launches of the tests of one binary, one at a time: the list of reports is the process's.
static LAUNCHING: Mutex<()> = Mutex::new(());

impl Device {
    /// Installs softcuda and opens device 0.
    pub(crate) fn new() -> Self {
        softcuda::install().expect("softcuda can be installed");
        let context = CudaContext::new(0).expect("there is a device 0");
        let stream = context.new_stream().expect("a stream can be created");
        Self { context, stream }
    }

    /// A copy of `values` on the device.
    pub(crate) fn upload<T: DeviceRepr>(&self, values: &[T]) -> CudaSlice<T> {
        self.stream.clone_htod(values).expect("device memory")
    }

    /// `count` zeros on the device.
    pub(crate) fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, count: usize) -> CudaSlice<T> {
        self.stream.alloc_zeros(count).expect("device memory")
    }

    /// A copy on the host.
    pub(crate) fn download<T: DeviceRepr>(&self, values: &CudaSlice<T>) -> Vec<T> {
        let copied = self.stream.clone_dtoh(values).expect("a copy to the host");
        self.stream.synchronize().expect("the copy ends");
        copied
    }

    /// The module of `tests/kernels/<name>.cu`.
    pub(crate) fn module(&self, name: &str) -> Arc<CudaModule> {
        self.module_of(Ptx::from_src(super::compile::compile(name, &[])))
    }

    /// A module of PTX text or of a binary.
    pub(crate) fn module_of(&self, ptx: Ptx) -> Arc<CudaModule> {
        self.context.load_module(ptx).unwrap_or_else(|error| panic!("module not loaded: {error}"))
    }

    /// The kernel of `tests/kernels/<module>.cu`.
    pub(crate) fn kernel(&self, module: &str, kernel: &str) -> CudaFunction {
        function(&self.module(module), kernel)
    }

    /// Runs a kernel to its end, with the arguments that `add` gives. The report is softcuda's; a real device gives
    /// none.
    pub(crate) fn run<'a>(
        &'a self,
        function: &'a CudaFunction,
        shape: Shape,
        add: impl FnOnce(&mut LaunchArgs<'a>),
    ) -> Option<LaunchReport> {
        self.reported(|| {
            let mut arguments = self.stream.launch_builder(function);
            add(&mut arguments);
            // SAFETY: each test gives the arguments that its kernel declares, of the sizes that the kernel's text
            // indexes.
            unsafe { arguments.launch(shape.config()) }.map(drop)
        })
    }

    /// The same as a cooperative launch: all blocks at once, so that they can wait for each other.
    pub(crate) fn run_cooperative<'a>(
        &'a self,
        function: &'a CudaFunction,
        shape: Shape,
        add: impl FnOnce(&mut LaunchArgs<'a>),
    ) -> Option<LaunchReport> {
        self.reported(|| {
            let mut arguments = self.stream.launch_builder(function);
            add(&mut arguments);
            // SAFETY: as in `run`.
            unsafe { arguments.launch_cooperative(shape.config()) }.map(drop)
        })
    }

    /// The same with blocks in clusters of `cluster` along x, which cudarc's safe layer has no call for.
    ///
    /// `arguments` point to the values of the kernel's parameters.
    pub(crate) fn run_clusters(
        &self,
        function: &CudaFunction,
        shape: Shape,
        cluster: u32,
        arguments: &mut [*mut std::ffi::c_void],
    ) -> Option<LaunchReport> {
        self.reported(|| {
            self.context.bind_to_thread()?;
            let mut attribute = sys::CUlaunchAttribute {
                id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
                pad: [0; 4],
                value: sys::CUlaunchAttributeValue {
                    clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cluster, y: 1, z: 1 },
                },
            };
            let config = sys::CUlaunchConfig {
                gridDimX: shape.grid.0,
                gridDimY: shape.grid.1,
                gridDimZ: 1,
                blockDimX: shape.block.0,
                blockDimY: shape.block.1,
                blockDimZ: 1,
                sharedMemBytes: shape.shared,
                hStream: self.stream.cu_stream(),
                attrs: &raw mut attribute,
                numAttrs: 1,
            };
            // SAFETY: the configuration and its one attribute live to the end of the call; arguments as in `run`.
            unsafe {
                sys::cuLaunchKernelEx(
                    &raw const config,
                    function.cu_function(),
                    arguments.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            }
            .result()
        })
    }

    /// Runs a kernel that has a fault, and gives the fault; none on a real device, which would not have noticed.
    pub(crate) fn run_faulty<'a>(
        &'a self,
        function: &'a CudaFunction,
        shape: Shape,
        add: impl FnOnce(&mut LaunchArgs<'a>),
    ) -> Option<Fault> {
        let (launched, report) = self.launch(|| {
            let mut arguments = self.stream.launch_builder(function);
            add(&mut arguments);
            // SAFETY: as in `run`; what the kernel does wrong, softcuda stops.
            unsafe { arguments.launch(shape.config()) }.map(drop)
        });
        let report = report?;
        assert!(launched.is_err(), "a launch with a fault fails");
        Some(report.fault.expect("the fault is found"))
    }

    /// Launches, waits, and takes the report of that launch.
    fn launch(
        &self,
        launch: impl FnOnce() -> Result<(), DriverError>,
    ) -> (Result<(), DriverError>, Option<LaunchReport>) {
        let _one_at_a_time = LAUNCHING.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(control) = softcuda::control() else {
            return (launch().and_then(|()| self.stream.synchronize()), None);
        };
        control.take_launches();
        let launched = launch().and_then(|()| self.stream.synchronize());
        // Otherwise it would fail every later call in this process, as on a device.
        control.clear_fault();
        (launched, control.take_launches().pop())
    }

    fn reported(&self, launch: impl FnOnce() -> Result<(), DriverError>) -> Option<LaunchReport> {
        let (launched, report) = self.launch(launch);
        if let Some(fault) = report.as_ref().and_then(|report| report.fault.as_ref()) {
            panic!("{fault}");
        }
        launched.unwrap_or_else(|error| panic!("launch failed: {error}"));
        report
    }
}

/// A kernel of a module.
pub(crate) fn function(module: &Arc<CudaModule>, kernel: &str) -> CudaFunction {
    module.load_function(kernel).unwrap_or_else(|error| panic!("kernel {kernel}: {error}"))
}
