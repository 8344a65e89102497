//! Every object of the driver, in tables under one lock, and how handles and contexts are resolved.

use super::entry::Outcome;
use super::error::Code;
use super::link::Linking;
use super::work::Work;
use crate::machine::device::{Device, Program};
use crate::report::{Fault, LaunchReport};
use crate::settings::Settings;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::CString;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::ThreadId;
use std::time::Instant;

/// A handle as the C interface passes it: a key of one of the tables, never an address.
pub(super) type Handle = u64;

/// The most launch reports that are kept for a test to take; older ones are dropped.
const REPORTS_KEPT: usize = 4096;

/// Everything.
pub(super) struct State {
    pub(super) settings: Settings,
    pub(super) initialised: bool,
    /// The machine. All ordinals share its memory, so that an address belongs to one device only; capacity is accounted
    /// here.
    pub(super) device: Option<Arc<RwLock<Device>>>,
    pub(super) contexts: HashMap<Handle, Context>,
    /// The primary context of each ordinal that was ever asked for.
    pub(super) primaries: HashMap<u32, Primary>,
    pub(super) streams: HashMap<Handle, Stream>,
    pub(super) events: HashMap<Handle, Event>,
    pub(super) modules: HashMap<Handle, Module>,
    pub(super) functions: HashMap<Handle, Function>,
    pub(super) libraries: HashMap<Handle, Library>,
    pub(super) linkings: HashMap<Handle, Linking>,
    pub(super) pools: HashMap<Handle, Pool>,
    /// The default pool and the current pool of each ordinal.
    pub(super) device_pools: HashMap<u32, (Handle, Handle)>,
    pub(super) captures: HashMap<Handle, Capture>,
    pub(super) graphs: HashMap<Handle, Graph>,
    pub(super) executables: HashMap<Handle, Graph>,
    pub(super) allocations: BTreeMap<u64, Allocation>,
    /// Launch reports, while a test wants them.
    pub(super) reports: Option<VecDeque<LaunchReport>>,
    pub(super) last_fault: Option<Fault>,
    /// The most device memory that was in use at once, in bytes.
    pub(super) peak_bytes: u64,
    next: Handle,
    /// Counts submissions over all streams, so that delayed work can be ordered by age.
    pub(super) submissions: u64,
}

/// A context.
pub(super) struct Context {
    pub(super) ordinal: u32,
    pub(super) flags: u32,
    /// The stream that handles 0 and 1 name.
    pub(super) legacy: Handle,
    /// The streams that handle 2 names, one for each thread that used it.
    pub(super) per_thread: HashMap<ThreadId, Handle>,
    /// The sticky error that a fault left.
    pub(super) fault: Option<Code>,
    /// `cuCtxSetLimit`: (limit, value).
    pub(super) limits: HashMap<u32, usize>,
    pub(super) cache_config: u32,
    pub(super) shared_config: u32,
}

/// The primary context of a device.
#[derive(Clone, Copy, Default)]
pub(super) struct Primary {
    /// The same for all its lives.
    pub(super) handle: Handle,
    pub(super) retained: u32,
    pub(super) flags: u32,
}

/// A stream and the work that waits in it.
pub(super) struct Stream {
    pub(super) context: Handle,
    pub(super) flags: u32,
    pub(super) priority: i32,
    pub(super) pending: VecDeque<Operation>,
    /// Operations ever submitted, and of these the completed.
    pub(super) submitted: u64,
    pub(super) completed: u64,
    /// A host function of it is running: what comes after it waits.
    pub(super) in_host_function: bool,
    /// The capture that it takes part in.
    pub(super) capture: Option<Handle>,
    /// The caller has destroyed it; it lives until its work is done.
    pub(super) destroyed: bool,
}

/// A piece of work in a stream.
pub(super) struct Operation {
    /// What must be complete before it: (stream, operations submitted to it).
    pub(super) after: Vec<(Handle, u64)>,
    pub(super) work: Work,
    /// It calls a function of the caller's.
    pub(super) is_host_function: bool,
    /// Its place among all submissions.
    pub(super) number: u64,
}

/// An event.
pub(super) struct Event {
    pub(super) context: Handle,
    pub(super) flags: u32,
    pub(super) record: Option<Record>,
    /// It was last recorded in a stream that is being captured: the capture, and what precedes the event in it.
    pub(super) captured: Option<(Handle, Clock)>,
}

/// A recording of an event.
#[derive(Clone, Copy)]
pub(super) struct Record {
    pub(super) stream: Handle,
    pub(super) position: u64,
    /// When the stream came to it.
    pub(super) reached: Option<Instant>,
}

/// How many captured operations of each stream precede a point.
pub(super) type Clock = HashMap<Handle, usize>;

/// A capture of streams into a graph.
pub(super) struct Capture {
    pub(super) origin: Handle,
    /// 0 global, 1 of the thread, 2 relaxed.
    pub(super) mode: u32,
    pub(super) thread: ThreadId,
    pub(super) invalidated: bool,
    pub(super) nodes: Vec<Node>,
    /// For each stream that takes part, what precedes its next operation.
    pub(super) clocks: HashMap<Handle, Clock>,
    /// Memory that was allocated in the capture; the graph owns it.
    pub(super) owned: Vec<u64>,
}

/// A node of a graph: its `CUgraphNodeType` and its work.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) kind: u32,
    pub(super) handle: Handle,
    pub(super) work: Work,
}

/// A graph; its nodes are in an order that respects every dependency.
#[derive(Clone, Default)]
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    pub(super) owned: Vec<u64>,
    pub(super) flags: u64,
}

/// A module.
pub(super) struct Module {
    pub(super) context: Handle,
    pub(super) program: Arc<Program>,
    /// The handle of each kernel that was asked for.
    pub(super) functions: HashMap<usize, Handle>,
}

/// A kernel of a module.
pub(super) struct Function {
    pub(super) context: Handle,
    pub(super) module: Handle,
    pub(super) program: Arc<Program>,
    pub(super) kernel: usize,
    pub(super) name: CString,
    /// The most dynamic shared memory that may be asked for, in bytes; `None`: what static memory leaves of 48 KiB.
    pub(super) max_dynamic_shared: Option<u32>,
    pub(super) carveout: i32,
    pub(super) non_portable_cluster: bool,
}

/// A library: a module of the context that was current when it was loaded.
pub(super) struct Library {
    pub(super) module: Handle,
}

/// A memory pool.
pub(super) struct Pool {
    pub(super) ordinal: u32,
    /// `CUmemPool_attribute` and value.
    pub(super) attributes: HashMap<u32, u64>,
    pub(super) used: u64,
    pub(super) used_high: u64,
}

/// What kind of memory an allocation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Device memory.
    Device,
    /// Host memory that the driver allocated, with its `CU_MEMHOSTALLOC_*` flags.
    Host(u32),
    /// Memory of the caller that was registered, with its flags.
    Registered(u32),
    /// Managed memory.
    Managed,
}

/// An allocation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allocation {
    pub(super) bytes: u64,
    pub(super) context: Handle,
    pub(super) ordinal: u32,
    pub(super) kind: Kind,
    pub(super) pool: Option<Handle>,
    /// A free is queued in a stream.
    pub(super) freeing: bool,
    pub(super) id: u64,
}

thread_local! {
    /// The contexts that are current to this thread; the last is the one in use.
    static CURRENT: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
}

/// The contexts of this thread, innermost last.
pub(super) fn with_current<T>(action: impl FnOnce(&mut Vec<Handle>) -> T) -> T {
    CURRENT.with_borrow_mut(action)
}

/// The tables, locked. Never held while work runs.
pub(super) fn state() -> MutexGuard<'static, State> {
    static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| Mutex::new(State::new(Settings::default())));
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn new(settings: Settings) -> Self {
        Self {
            settings,
            initialised: false,
            device: None,
            contexts: HashMap::new(),
            primaries: HashMap::new(),
            streams: HashMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            libraries: HashMap::new(),
            linkings: HashMap::new(),
            pools: HashMap::new(),
            device_pools: HashMap::new(),
            captures: HashMap::new(),
            graphs: HashMap::new(),
            executables: HashMap::new(),
            allocations: BTreeMap::new(),
            reports: None,
            last_fault: None,
            peak_bytes: 0,
            next: 0x5c00_0000_0000,
            submissions: 0,
        }
    }

    /// A new handle, different from all before.
    pub(super) fn handle(&mut self) -> Handle {
        self.next += 16;
        self.next
    }

    /// Refuses calls before `cuInit`.
    pub(super) fn check_initialised(&self) -> Outcome {
        if self.initialised { Ok(()) } else { Err(Code::NOT_INITIALIZED) }
    }

    /// The ordinal of a device handle.
    pub(super) fn ordinal(&self, device: i32) -> Outcome<u32> {
        self.check_initialised()?;
        u32::try_from(device).ok().filter(|&ordinal| ordinal < self.settings.devices).ok_or(Code::INVALID_DEVICE)
    }

    /// The machine.
    pub(super) fn machine(&mut self) -> Arc<RwLock<Device>> {
        let settings = &self.settings;
        let machine = self.device.get_or_insert_with(|| Arc::new(RwLock::new(Device::new(&for_machine(settings)))));
        Arc::clone(machine)
    }

    /// The context that is current to this thread, whether or not it has a fault.
    pub(super) fn current_with_fault(&self) -> Outcome<Handle> {
        self.check_initialised()?;
        let handle = with_current(|stack| stack.last().copied()).filter(|&handle| handle != 0);
        let handle = handle.ok_or(Code::INVALID_CONTEXT)?;
        if self.contexts.contains_key(&handle) { Ok(handle) } else { Err(Code::CONTEXT_IS_DESTROYED) }
    }

    /// The context that is current to this thread; its sticky error if it has one.
    pub(super) fn current(&self) -> Outcome<Handle> {
        let handle = self.current_with_fault()?;
        self.check_fault(handle)?;
        Ok(handle)
    }

    /// A context by its handle.
    pub(super) fn context(&self, handle: Handle) -> Outcome<&Context> {
        self.contexts.get(&handle).ok_or(Code::INVALID_CONTEXT)
    }

    /// The sticky error of a context.
    pub(super) fn check_fault(&self, context: Handle) -> Outcome {
        self.contexts.get(&context).and_then(|context| context.fault).map_or(Ok(()), Err)
    }

    /// The stream that a handle names: 0 and 1 the legacy stream, 2 the thread's own, else a created one. With its
    /// sticky error.
    pub(super) fn stream(&mut self, stream: Handle) -> Outcome<Handle> {
        let handle = self.stream_with_fault(stream)?;
        self.check_fault(self.streams[&handle].context)?;
        Ok(handle)
    }

    /// As [`State::stream`], without looking for a sticky error.
    pub(super) fn stream_with_fault(&mut self, stream: Handle) -> Outcome<Handle> {
        self.check_initialised()?;
        match stream {
            0 | 1 => {
                let context = self.current_with_fault()?;
                Ok(self.contexts[&context].legacy)
            }
            2 => {
                let context = self.current_with_fault()?;
                let thread = std::thread::current().id();
                if let Some(&handle) = self.contexts[&context].per_thread.get(&thread) {
                    return Ok(handle);
                }
                let handle = self.new_stream(context, 0, 0);
                if let Some(context) = self.contexts.get_mut(&context) {
                    context.per_thread.insert(thread, handle);
                }
                Ok(handle)
            }
            _ => {
                let live = self.streams.get(&stream).is_some_and(|entry| !entry.destroyed);
                if live { Ok(stream) } else { Err(Code::INVALID_HANDLE) }
            }
        }
    }

    /// A new stream.
    pub(super) fn new_stream(&mut self, context: Handle, flags: u32, priority: i32) -> Handle {
        let handle = self.handle();
        let stream = Stream {
            context,
            flags,
            priority,
            pending: VecDeque::new(),
            submitted: 0,
            completed: 0,
            in_host_function: false,
            capture: None,
            destroyed: false,
        };
        self.streams.insert(handle, stream);
        handle
    }

    /// A new context under a handle.
    pub(super) fn new_context(&mut self, handle: Handle, ordinal: u32, flags: u32) {
        let legacy = self.new_stream(handle, 0, 0);
        let context = Context {
            ordinal,
            flags,
            legacy,
            per_thread: HashMap::new(),
            fault: None,
            limits: HashMap::new(),
            cache_config: 0,
            shared_config: 0,
        };
        self.contexts.insert(handle, context);
    }

    /// Bytes of device memory in use on a device.
    pub(super) fn used_bytes(&self, ordinal: u32) -> u64 {
        let on_device = |allocation: &&Allocation| allocation.ordinal == ordinal && allocation.kind == Kind::Device;
        self.allocations.values().filter(on_device).map(|allocation| allocation.bytes).sum()
    }

    /// Bytes of device memory in use on all devices.
    pub(super) fn all_used_bytes(&self) -> u64 {
        (0..self.settings.devices).map(|ordinal| self.used_bytes(ordinal)).sum()
    }

    /// The allocation that holds an address, with its base.
    pub(super) fn allocation(&self, address: u64) -> Option<(u64, Allocation)> {
        let (&base, &allocation) = self.allocations.range(..=address).next_back()?;
        (address - base < allocation.bytes).then_some((base, allocation))
    }

    /// Keeps a launch's report for whoever asked for it.
    pub(super) fn keep_report(&mut self, report: &LaunchReport) {
        if let Some(fault) = &report.fault {
            self.last_fault = Some(fault.clone());
        }
        if let Some(reports) = &mut self.reports {
            if reports.len() == REPORTS_KEPT {
                reports.pop_front();
            }
            reports.push_back(report.clone());
        }
    }

    /// Puts new settings to use. Memory stays as it is.
    pub(super) fn configure(&mut self, settings: &Settings) -> Option<Arc<RwLock<Device>>> {
        self.settings = settings.clone();
        self.device.clone()
    }

    /// Forgets faults, so that the contexts work again.
    pub(super) fn clear_faults(&mut self) {
        self.last_fault = None;
        for context in self.contexts.values_mut() {
            context.fault = None;
        }
    }

    /// Forgets faults and reports and starts the high-water mark anew; objects stay.
    pub(super) fn reset_reports(&mut self) {
        self.clear_faults();
        self.peak_bytes = self.all_used_bytes();
        if let Some(reports) = &mut self.reports {
            reports.clear();
        }
    }
}

/// The settings as the machine gets them: its memory holds all devices', and the driver accounts for each.
pub(super) fn for_machine(settings: &Settings) -> Settings {
    let memory_bytes = settings.memory_bytes.saturating_mul(u64::from(settings.devices.max(1)));
    Settings { memory_bytes: memory_bytes.max(MACHINE_BYTES), ..settings.clone() }
}

/// The capacity of the machine's memory: more than any setting, since it cannot grow after its first use.
const MACHINE_BYTES: u64 = 1 << 43;
