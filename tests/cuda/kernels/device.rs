//! Kernels on softcuda without a driver: compiled from `kernels/`, launched with plain structs, checked for faults.

use kernel_build::nvcc;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use softcuda::Settings;
use softcuda::machine::device::{Device, Launch, Program};
use softcuda::report::LaunchReport;

/// PTX of `kernels/<name>.cu`, compiled once per test binary and text.
pub(crate) fn ptx(name: &str) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels").join(name).with_extension("cu");
    compiled(name, &source)
}

/// PTX of `kernels/<name>.cu` with another text, for kernels that are broken on purpose. `label` names the breakage.
pub(crate) fn ptx_of(name: &str, label: &str, text: &str) -> String {
    let name = format!("{name}-{label}");
    let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.cu", std::process::id()));
    std::fs::write(&source, text).expect("the target folder can be written");
    compiled(&name, &source)
}

fn compiled(name: &str, source: &Path) -> String {
    static COMPILING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = COMPILING.lock().unwrap_or_else(PoisonError::into_inner);
    let root = &Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.ptx", std::process::id()));
    if let Ok(found) = std::fs::read_to_string(&output) {
        return found;
    }
    let nvcc = nvcc::find(root, |name| std::env::var_os(name)).expect("no nvcc: run scripts/install-nvcc");
    let run = Command::new(&nvcc)
        .args(["-std=c++17", "-O3", "-ptx", "-arch=compute_80", "-I"])
        .arg(root.join("kernels"))
        .arg("-o")
        .args([output.as_path(), source])
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", nvcc.display()));
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    std::fs::read_to_string(&output).expect("nvcc wrote its output")
}

/// A device with one kernel's module.
pub(crate) struct Kernel {
    device: Device,
    program: Arc<Program>,
    index: usize,
}

impl Kernel {
    pub(crate) fn new(name: &str, shuffle: Option<u64>) -> Self {
        Self::of(&ptx(name), name, shuffle)
    }

    /// A kernel of a module that is given as PTX.
    pub(crate) fn of(ptx: &str, name: &str, shuffle: Option<u64>) -> Self {
        let device = Device::new(&Settings { shuffle, ..Settings::default() });
        let program = device.load(ptx).unwrap_or_else(|error| panic!("{error}"));
        let index = program.kernel(name).expect("the kernel");
        Kernel { device, program, index }
    }

    /// A buffer with these numbers; the null pointer for `None`.
    pub(crate) fn input<T: bytemuck::Pod>(&self, values: Option<&[T]>) -> u64 {
        let Some(values) = values else { return 0 };
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let address = self.device.memory.allocate(bytes.len().max(1) as u64).expect("memory");
        self.device.memory.write(address, bytes).expect("a write in bounds");
        address
    }

    /// Writes a part of a buffer.
    pub(crate) fn write<T: bytemuck::Pod>(&self, address: u64, values: &[T]) {
        self.device.memory.write(address, bytemuck::cast_slice(values)).expect("a write in bounds");
    }

    /// A buffer that nobody has written.
    pub(crate) fn output<T>(&self, count: usize) -> u64 {
        self.device.memory.allocate((count * size_of::<T>()).max(1) as u64).expect("memory")
    }

    pub(crate) fn read<T: bytemuck::Pod>(&self, address: u64, count: usize) -> Vec<T> {
        let mut values = vec![T::zeroed(); count];
        self.device.memory.read(address, bytemuck::cast_slice_mut(&mut values)).expect("a read in bounds");
        values
    }

    /// Runs the kernel; a fault is in the report.
    pub(crate) fn try_launch<A: bytemuck::NoUninit>(&self, grid: [u32; 3], block: u32, arguments: &A) -> LaunchReport {
        let parameters = bytemuck::bytes_of(arguments).to_vec();
        assert_eq!(parameters.len(), self.program.kernels()[self.index].parameter_bytes as usize);
        let launch = Launch { grid, block: [block, 1, 1], parameters, ..Launch::default() };
        self.device.launch(&self.program, self.index, &launch)
    }

    /// Runs the kernel; a fault fails the test.
    pub(crate) fn launch<A: bytemuck::NoUninit>(&self, grid: usize, block: u32, arguments: &A) -> LaunchReport {
        let report = self.try_launch([grid as u32, 1, 1], block, arguments);
        if let Some(fault) = &report.fault {
            panic!("{fault}");
        }
        report
    }
}
