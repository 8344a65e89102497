//! A device: memory, programs, launches.

use super::memory::global::GlobalMemory;
pub use super::program::{KernelInfo, Program};
use super::{launch, program};
use crate::ptx;
use crate::report::LaunchReport;
use crate::settings::Settings;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A device.
pub struct Device {
    /// Its memory.
    pub memory: GlobalMemory,
    settings: Settings,
    launches: AtomicU64,
}

/// The shape of a launch and the kernel's arguments.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Blocks of a cluster along x, y, z; `None`: what the kernel requires, or no cluster.
    pub cluster: Option<[u32; 3]>,
    /// Dynamic shared memory in bytes.
    pub dynamic_shared_bytes: u32,
    /// All blocks are resident together (`cuLaunchCooperativeKernel`).
    pub cooperative: bool,
    /// The parameter block: each parameter at its offset ([`KernelInfo::parameters`]).
    pub parameters: Vec<u8>,
}

impl Device {
    /// A device with these settings.
    pub fn new(settings: &Settings) -> Self {
        Self {
            memory: GlobalMemory::new(settings.memory_bytes),
            settings: settings.clone(),
            launches: AtomicU64::new(0),
        }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Changes the settings for later launches; the memory stays.
    pub fn configure(&mut self, settings: &Settings) {
        self.settings = settings.clone();
    }

    /// Parses, decodes and links a PTX text, and places its variables.
    ///
    /// # Errors
    /// What is wrong with the text, and where.
    pub fn load(&self, text: &str) -> Result<Arc<Program>, ptx::Error> {
        let module = ptx::parse(text)?;
        program::link(text, &module, &self.memory).map(Arc::new)
    }

    /// Gives back a program's variables.
    pub fn unload(&self, program: &Program) {
        for address in program.global_addresses() {
            // Freed before, perhaps, by a program that mistook a variable for an allocation: then it has been told so.
            let _ = self.memory.free(address);
        }
    }

    /// Runs a kernel to its end or to its first fault. The shape must have been checked against [`KernelInfo`] and the
    /// device's limits.
    pub fn launch(&self, program: &Arc<Program>, kernel: usize, launch: &Launch) -> LaunchReport {
        let number = self.launches.fetch_add(1, Ordering::Relaxed);
        launch::run(self, program, kernel, launch, number)
    }
}
