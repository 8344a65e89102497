//! Modules: from a PTX text or a fat binary to kernels and variables.

use super::entry::{In, Out, Outcome, Text, entry_points};
use super::error::Code;
use super::host_memory::read_host;
use super::state::{Function, Handle, Module, State, state};
use super::work::synchronise_context;
use crate::fatbin::{self, FatbinError};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::sync::PoisonError;

/// The latest PTX version of which every instruction is known, or known to be refused. Texts of later versions load as
/// long as they use nothing else.
const KNOWN_VERSION: (u32, u32) = (9, 0);

/// First bytes of a fat binary, of the structure that points to one, and of an object file with machine code.
const FAT_BINARY: u32 = 0xba55_ed50;
const FAT_BINARY_WRAPPER: u32 = 0x4662_43b1;
const OBJECT_FILE: u32 = u32::from_le_bytes(*b"\x7fELF");

/// The header of a fat binary in bytes, from which its length is known.
const FAT_BINARY_HEADER: usize = 16;

/// The PTX version that came with a version of CUDA, of those of 11 and 12 (PTX ISA, "Release Notes").
fn known_to_driver((major, minor): (u32, u32)) -> (u32, u32) {
    match (major, minor) {
        (..=11, minor) => (7, minor),
        (12, ..=5) => (8, minor),
        (12, minor) => (8, minor - 1),
        _ => KNOWN_VERSION,
    }
}

/// Options of the just-in-time compiler (`CUjit_option`) that give the caller something back.
const INFO_LOG: u32 = 3;
const INFO_LOG_BYTES: u32 = 4;
const ERROR_LOG: u32 = 5;
const ERROR_LOG_BYTES: u32 = 6;

/// Why an image was not loaded: the error, and what the compiler would write to its log.
pub(super) struct Failure {
    code: Code,
    log: String,
}

impl Failure {
    /// Says why, and gives the error.
    pub(super) fn code(self) -> Code {
        if !self.log.is_empty() {
            eprintln!("softcuda: a module was not loaded: {}", self.log);
        }
        self.code
    }
}

impl From<Code> for Failure {
    fn from(code: Code) -> Self {
        Self { code, log: String::new() }
    }
}

/// Options of the just-in-time compiler as the caller gives them: values are passed in the pointers themselves.
pub(super) struct Options {
    values: HashMap<u32, u64>,
    places: In<u64>,
    order: Vec<u32>,
}

impl Options {
    pub(super) fn none() -> Self {
        Self { values: HashMap::new(), places: In::null(), order: Vec::new() }
    }

    pub(super) fn read(count: u32, options: In<u32>, values: In<u64>) -> Outcome<Self> {
        if count == 0 {
            return Ok(Self::none());
        }
        let order = options.list(count as usize)?;
        let given = values.list(count as usize)?;
        Ok(Self { values: order.iter().copied().zip(given).collect(), places: values, order })
    }

    /// Writes a log into the caller's buffer, cut to its size, and how long it became.
    fn put_log(&self, buffer: u32, size: u32, log: &str) {
        let (Some(&address), Some(&room)) = (self.values.get(&buffer), self.values.get(&size)) else { return };
        // The size is 32 bits wide in the caller's 64.
        let room = (room & 0xffff_ffff) as usize;
        if address == 0 || room == 0 {
            return;
        }
        let kept = &log.as_bytes()[..log.len().min(room - 1)];
        let _ = super::host_memory::write_host(address, &[kept, &[0]].concat());
        if let Some(index) = self.order.iter().position(|&option| option == size) {
            self.places.put_at(index, kept.len() as u64);
        }
    }
}

/// The value of a directive of a PTX text: what follows it up to the end of the line.
fn directive<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.trim_start().strip_prefix(name)).map(str::trim)
}

/// The version of a PTX text.
fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = directive(text, ".version ")?.split_once('.')?;
    let digits = minor.split(|letter: char| !letter.is_ascii_digit()).next()?;
    Some((major.trim().parse().ok()?, digits.parse().ok()?))
}

/// What a text is refused with that cannot be read or uses what is not known.
fn refused(text: &str, error: &crate::ptx::Error) -> Failure {
    match version(text).filter(|version| *version > KNOWN_VERSION) {
        None => Failure { code: Code::INVALID_PTX, log: error.to_string() },
        Some((major, minor)) => {
            let known = format!("{}.{}", KNOWN_VERSION.0, KNOWN_VERSION.1);
            let log = format!("{error} (PTX version {major}.{minor} may have it; what is known is {known})");
            Failure { code: Code::UNSUPPORTED_PTX_VERSION, log }
        }
    }
}

/// Whether a driver takes PTX of this version. One for 13.0 takes later texts too: see [`KNOWN_VERSION`].
fn check_version(text: &str, driver: (u32, u32)) -> Result<(), Failure> {
    let known = known_to_driver(driver);
    match version(text).filter(|version| known < KNOWN_VERSION && *version > known) {
        None => Ok(()),
        Some((major, minor)) => {
            let log = format!("PTX version {major}.{minor}: the driver is for CUDA {}.{}", driver.0, driver.1);
            Err(Failure { code: Code::UNSUPPORTED_PTX_VERSION, log })
        }
    }
}

/// Whether PTX of this target runs on the device.
fn check_target(text: &str, capability: (u32, u32)) -> Result<(), Failure> {
    let target = directive(text, ".target ").and_then(|target| target.strip_prefix("sm_"));
    let Some(target) = target else { return Ok(()) };
    let digits: String = target.chars().take_while(char::is_ascii_digit).collect();
    let Ok(number) = digits.parse::<u32>() else { return Ok(()) };
    let own = capability.0 * 10 + capability.1;
    // `a`: code for one capability alone; `f`: for its family, of the same major version.
    let fits = match target[digits.len()..].chars().next() {
        Some('a') => number == own,
        Some('f') => number <= own && number / 10 == own / 10,
        _ => number <= own,
    };
    if fits {
        return Ok(());
    }
    Err(Failure { code: Code::INVALID_PTX, log: format!("PTX for sm_{} does not run on sm_{own}", target.trim()) })
}

/// An image: where it begins, and how many bytes there are at most.
#[derive(Clone, Copy)]
pub(super) struct Image {
    start: In<u8>,
    room: usize,
}

impl Image {
    /// An image that the driver has read; it must outlive the use of this.
    pub(super) fn of_bytes(bytes: &[u8]) -> Self {
        Self { start: In::of(bytes), room: bytes.len() }
    }

    /// An image in memory of the caller; only itself tells its size.
    pub(super) fn of_caller(start: In<u8>) -> Self {
        Self { start, room: usize::MAX }
    }

    /// The first four bytes, or what there is before a NUL.
    fn magic(self) -> Outcome<u32> {
        let mut first = [0; 4];
        for (index, byte) in first.iter_mut().enumerate() {
            *byte = self.start.at(index)?;
            if *byte == 0 {
                break;
            }
        }
        Ok(u32::from_le_bytes(first))
    }

    fn bytes(self, count: usize) -> Outcome<Vec<u8>> {
        if count > self.room {
            return Err(Code::INVALID_IMAGE);
        }
        read_host(self.start.address() as u64, count).map_err(|_| Code::INVALID_IMAGE)
    }

    /// The PTX text for a device.
    pub(super) fn text(self, capability: (u32, u32)) -> Result<String, Failure> {
        let image = if self.magic()? == FAT_BINARY_WRAPPER {
            // Magic, version, then the address of the fat binary.
            let address = self.bytes(16)?[8..].try_into().map(u64::from_le_bytes).map_err(|_| Code::INVALID_IMAGE)?;
            Self::of_caller(In::at_place(address))
        } else {
            self
        };
        match image.magic()? {
            FAT_BINARY => {
                let header = image.bytes(FAT_BINARY_HEADER)?;
                let length = fatbin::image_length(&header).ok_or(Code::INVALID_IMAGE)?;
                fatbin::ptx(&image.bytes(length)?, capability).map_err(|error| {
                    let damaged = matches!(error, FatbinError::Damaged(_) | FatbinError::Unknown);
                    let code = if damaged { Code::INVALID_IMAGE } else { Code::NO_BINARY_FOR_GPU };
                    Failure { code, log: error.to_string() }
                })
            }
            FAT_BINARY_WRAPPER => Err(Code::INVALID_IMAGE.into()),
            OBJECT_FILE => Err(Failure { code: Code::NO_BINARY_FOR_GPU, log: FatbinError::Cubin.to_string() }),
            _ => {
                // SAFETY: the C interface asks the caller for a NUL-terminated text where the image is neither of the
                // above; not null, since its first byte was read.
                let text = unsafe { CStr::from_ptr(image.start.address().cast()) };
                text.to_str().map(str::to_owned).map_err(|_| Code::INVALID_IMAGE.into())
            }
        }
    }
}

/// Loads an image into the current context.
pub(super) fn load(image: Image, options: &Options) -> Outcome<Handle> {
    let (context, machine, capability, driver) = {
        let mut state = state();
        let settings = &state.settings;
        let (capability, driver) = (settings.compute_capability, settings.driver_version);
        (state.current()?, state.machine(), capability, driver)
    };
    let loaded = image.text(capability).and_then(|text| {
        check_version(&text, driver)?;
        check_target(&text, capability)?;
        let machine = machine.read().unwrap_or_else(PoisonError::into_inner);
        machine.load(&text).map_err(|error| refused(&text, &error))
    });
    match loaded {
        Ok(program) => {
            options.put_log(INFO_LOG, INFO_LOG_BYTES, "");
            options.put_log(ERROR_LOG, ERROR_LOG_BYTES, "");
            let mut state = state();
            let handle = state.handle();
            state.modules.insert(handle, Module { context, program, functions: HashMap::new() });
            Ok(handle)
        }
        Err(failure) => {
            options.put_log(ERROR_LOG, ERROR_LOG_BYTES, &failure.log);
            Err(failure.code())
        }
    }
}

/// Loads an image from a file.
pub(super) fn load_file(name: Text, options: &Options) -> Outcome<Handle> {
    let name = name.get()?;
    state().current()?;
    let mut image = std::fs::read(name).map_err(|_| Code::FILE_NOT_FOUND)?;
    image.push(0);
    load(Image::of_bytes(&image), options)
}

/// Unloads a module after all work of its context.
pub(super) fn unload(module: Handle) -> Outcome {
    let context = {
        let state = state();
        state.check_initialised()?;
        state.modules.get(&module).ok_or(Code::INVALID_HANDLE)?.context
    };
    let outcome = synchronise_context(context);
    state().unload(module);
    outcome
}

impl State {
    /// Takes a module and its functions out of the tables.
    pub(super) fn unload(&mut self, module: Handle) {
        let Some(entry) = self.modules.remove(&module) else { return };
        self.functions.retain(|_, function| function.module != module);
        let machine = self.machine();
        machine.read().unwrap_or_else(PoisonError::into_inner).unload(&entry.program);
    }

    pub(super) fn module(&self, module: Handle) -> Outcome<&Module> {
        self.check_initialised()?;
        let entry = self.modules.get(&module).ok_or(Code::INVALID_HANDLE)?;
        self.check_fault(entry.context)?;
        Ok(entry)
    }

    /// The handle of a kernel, the same each time.
    pub(super) fn function_of(&mut self, module: Handle, kernel: usize) -> Outcome<Handle> {
        let entry = self.module(module)?;
        if let Some(&function) = entry.functions.get(&kernel) {
            return Ok(function);
        }
        let (context, program) = (entry.context, std::sync::Arc::clone(&entry.program));
        let name = CString::new(program.kernels()[kernel].name.clone()).map_err(|_| Code::NOT_FOUND)?;
        let handle = self.handle();
        let function = Function {
            context,
            module,
            program,
            kernel,
            name,
            max_dynamic_shared: None,
            carveout: -1,
            non_portable_cluster: false,
        };
        self.functions.insert(handle, function);
        if let Some(entry) = self.modules.get_mut(&module) {
            entry.functions.insert(kernel, handle);
        }
        Ok(handle)
    }

    /// A kernel by its name.
    pub(super) fn function_named(&mut self, module: Handle, name: &str) -> Outcome<Handle> {
        let kernel = self.module(module)?.program.kernel(name).ok_or(Code::NOT_FOUND)?;
        self.function_of(module, kernel)
    }
}

/// Address and size of a variable.
pub(super) fn variable(address: Out<u64>, bytes: Out<usize>, module: Handle, name: Text) -> Outcome {
    let state = state();
    let module = state.module(module)?;
    let (place, size) = module.program.global(&name.get()?).ok_or(Code::NOT_FOUND)?;
    address.put_if_wanted(place);
    bytes.put_if_wanted(size as usize);
    Ok(())
}

entry_points! {
    fn cuModuleLoad(module: Out<Handle>, name: Text) {
        module.check()?;
        module.put(load_file(name, &Options::none())?)
    }
    fn cuModuleLoadData(module: Out<Handle>, image: In<u8>) {
        module.check()?;
        module.put(load(Image::of_caller(image), &Options::none())?)
    }
    fn cuModuleLoadDataEx(module: Out<Handle>, image: In<u8>, count: u32, options: In<u32>, values: In<u64>) {
        module.check()?;
        module.put(load(Image::of_caller(image), &Options::read(count, options, values)?)?)
    }
    fn cuModuleLoadFatBinary(module: Out<Handle>, image: In<u8>) {
        module.check()?;
        module.put(load(Image::of_caller(image), &Options::none())?)
    }
    fn cuModuleUnload(module: Handle) {
        unload(module)
    }
    fn cuModuleGetLoadingMode(mode: Out<u32>) {
        state().check_initialised()?;
        mode.put(1)
    }
    fn cuModuleGetFunction(function: Out<Handle>, module: Handle, name: Text) {
        function.check()?;
        let name = name.get()?;
        let handle = state().function_named(module, &name)?;
        function.put(handle)
    }
    fn cuModuleGetFunctionCount(count: Out<u32>, module: Handle) {
        let state = state();
        count.put(state.module(module)?.program.kernels().len() as u32)
    }
    fn cuModuleEnumerateFunctions(functions: Out<Handle>, room: u32, module: Handle) {
        functions.check()?;
        let mut state = state();
        let count = state.module(module)?.program.kernels().len();
        for kernel in 0..count.min(room as usize) {
            let handle = state.function_of(module, kernel)?;
            functions.put_at(kernel, handle)?;
        }
        Ok(())
    }
    fn cuModuleGetGlobal_v2(address: Out<u64>, bytes: Out<usize>, module: Handle, name: Text) {
        variable(address, bytes, module, name)
    }
}
