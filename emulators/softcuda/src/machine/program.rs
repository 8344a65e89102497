//! A loaded module: decoded functions, variables in device memory, the layout of each kernel's shared memory.

use super::memory::global::GlobalMemory;
use super::shared_layout::{SharedLayout, place_inner};
use super::system::{Heap, System};
use super::window;
use crate::ptx::decode::call::spill;
use crate::ptx::decode::code::{CallSite, Code, Decoded, Operation, Target, place_in_frame};
use crate::ptx::decode::memory::{Access, Memory};
use crate::ptx::decode::scope::{Binding, Frame, Scope};
use crate::ptx::decode::special::Special;
use crate::ptx::decode::wmma::Wmma;
use crate::ptx::syntax::{Error, Function, Initial, Module, Statement, Variable};
use crate::ptx::target::{DIRECTIVES, Platform};
use crate::ptx::types::Space;
use std::collections::{HashMap, HashSet};

/// A kernel or a device function, decoded.
#[derive(Clone, Debug, Default)]
pub struct FunctionCode {
    /// Its name.
    pub name: String,
    /// Its first instruction; `None` for a function that is only declared.
    pub entry: Option<u32>,
    /// What the system does for a function without a body.
    pub system: Option<System>,
    /// Its registers and constants.
    pub frame: Frame,
    /// Offset and size in the frame of each parameter (of a device function).
    pub parameters: Vec<(u64, u64)>,
    /// Offset and size in the frame of each result.
    pub results: Vec<(u64, u64)>,
}

/// What is known of a kernel before it runs.
#[derive(Clone, Debug, Default)]
pub struct KernelInfo {
    /// Its name.
    pub name: String,
    /// Offset and size of each parameter in bytes.
    pub parameters: Vec<(u32, u32)>,
    /// Bytes of the parameter block.
    pub parameter_bytes: u32,
    /// Static shared memory in bytes.
    pub static_shared_bytes: u32,
    /// Local memory of a thread in bytes.
    pub local_bytes: u32,
    /// Constant memory of the module in bytes.
    pub constant_bytes: u32,
    /// Registers of a thread: PTX registers, of which there are more than ptxas would keep; at most 255.
    pub registers: u32,
    /// `.maxntid` multiplied out, or 1024.
    pub max_threads: u32,
    /// `.reqntid`.
    pub required_threads: Option<[u32; 3]>,
    /// `.reqnctapercluster`.
    pub required_cluster: Option<[u32; 3]>,
    /// The PTX version, major x 10 + minor.
    pub ptx_version: u32,
    /// The target's compute capability, major x 10 + minor.
    pub target: u32,
    /// Its place among the program's functions.
    pub function: u32,
}

/// A loaded module.
#[derive(Default)]
pub struct Program {
    /// The instructions of all functions.
    pub instructions: Vec<Decoded>,
    /// `brx.idx` tables.
    pub tables: Vec<Vec<u32>>,
    /// Call sites.
    pub calls: Vec<CallSite>,
    /// `wmma` instructions.
    pub wmma: Vec<Wmma>,
    /// Kernels and device functions in the order of the text.
    pub functions: Vec<FunctionCode>,
    /// The heap of `malloc`, where the module declares it.
    pub heap: Option<Heap>,
    kernels: Vec<KernelInfo>,
    globals: Vec<(String, u64, u64)>,
    lines: Vec<String>,
}

impl Program {
    /// The index of a kernel.
    pub fn kernel(&self, name: &str) -> Option<usize> {
        self.kernels.iter().position(|kernel| kernel.name == name)
    }

    /// Whether it asks where the system's part of shared memory lies.
    pub fn uses_reserved_shared(&self) -> bool {
        let specials = self.functions.iter().flat_map(|function| &function.frame.specials);
        specials.into_iter().any(|(_, special)| matches!(special, Special::ReservedShared(_)))
    }

    /// The kernels, in order.
    pub fn kernels(&self) -> &[KernelInfo] {
        &self.kernels
    }

    /// Address and size in bytes of a `.global` or `.const` variable.
    pub fn global(&self, name: &str) -> Option<(u64, u64)> {
        self.globals.iter().find(|global| global.0 == name).map(|global| (global.1, global.2))
    }

    /// Addresses of all that it has in device memory: its variables and its heap.
    pub fn global_addresses(&self) -> impl Iterator<Item = u64> {
        self.globals.iter().map(|global| global.1).chain(self.heap.iter().map(Heap::base))
    }

    /// A line of the PTX text, without its margins.
    pub fn line(&self, line: u32) -> &str {
        self.lines.get((line as usize).wrapping_sub(1)).map_or("", |line| line.trim())
    }
}

/// Decodes a module and places its variables in `memory`.
///
/// # Errors
/// What is wrong with the text, and where; no memory left.
pub fn link(text: &str, module: &Module, memory: &GlobalMemory) -> Result<Program, Error> {
    let mut program = Program { lines: text.lines().map(str::to_owned).collect(), ..Program::default() };
    let functions = distinct_functions(module);
    let mut names = HashMap::new();
    for (index, function) in functions.iter().enumerate() {
        names.insert(function.name.clone(), Binding::Function(index as u32));
    }
    let placed = place_variables(module, memory, &mut names, &mut program)?;
    if let Err(error) = initialise(&placed, memory, &names)
        .and_then(|()| decode(module, &functions, &names, &mut program))
        .and_then(|()| place_heap(memory, &mut program))
    {
        for address in program.global_addresses() {
            // The module is refused as a whole; what it had placed goes back.
            let _ = memory.free(address);
        }
        return Err(error);
    }
    Ok(program)
}

/// Declarations and their definitions are one function.
fn distinct_functions(module: &Module) -> Vec<&Function> {
    let mut functions: Vec<&Function> = Vec::new();
    for function in &module.functions {
        match functions.iter_mut().find(|other| other.name == function.name) {
            Some(known) if known.body.is_none() => *known = function,
            Some(_) => {}
            None => functions.push(function),
        }
    }
    functions
}

fn place_variables<'a>(
    module: &'a Module,
    memory: &GlobalMemory,
    names: &mut HashMap<String, Binding>,
    program: &mut Program,
) -> Result<Vec<(&'a Variable, u64)>, Error> {
    let mut placed = Vec::new();
    for variable in &module.variables {
        let constant = match variable.space {
            Space::Global => false,
            Space::Const => true,
            _ => continue,
        };
        let elements = variable.elements.unwrap_or(variable.initial.len() as u64);
        let size = elements.saturating_mul(u64::from(variable.ty.bytes())).max(1);
        if variable.external {
            // Another of the texts that were linked defines it.
            if module.variables.iter().any(|other| !other.external && other.name == variable.name) {
                continue;
            }
            return Err(Error::new(variable.line, format!("{} is extern, and nothing defines it", variable.name)));
        }
        let address = if constant { memory.allocate_constant(size) } else { memory.allocate(size) };
        let Some(address) = address else {
            return Err(Error::new(variable.line, format!("no memory left for {} ({size} bytes)", variable.name)));
        };
        program.globals.push((variable.name.clone(), address, size));
        names
            .insert(variable.name.clone(), Binding::Variable { space: variable.space, address, of_kernel: true, size });
        placed.push((variable, address));
    }
    Ok(placed)
}

fn initialise(
    placed: &[(&Variable, u64)],
    memory: &GlobalMemory,
    names: &HashMap<String, Binding>,
) -> Result<(), Error> {
    for (variable, address) in placed {
        let failed = |_| Error::new(variable.line, format!("{} cannot be written", variable.name));
        // PTX: variables without an initial value are zero.
        memory.fill(*address, &[0], variable.bytes().max(1)).map_err(failed)?;
        let width = variable.ty.bytes() as usize;
        let mut bytes = Vec::with_capacity(variable.initial.len() * width);
        for value in &variable.initial {
            let bits = match value {
                Initial::Bits(bits) => *bits,
                Initial::Address { name, offset } => {
                    let base = match names.get(name) {
                        Some(Binding::Variable { address, .. }) => *address,
                        Some(Binding::Function(index)) => window::function_address(*index),
                        _ => return Err(Error::new(variable.line, format!("{name} has no address"))),
                    };
                    base.wrapping_add(*offset as u64)
                }
            };
            bytes.extend_from_slice(&u128::from(bits).to_le_bytes()[..width]);
        }
        if !bytes.is_empty() {
            memory.write(*address, &bytes).map_err(failed)?;
        }
    }
    Ok(())
}

/// Makes the heap, if there is a function that takes from it.
fn place_heap(memory: &GlobalMemory, program: &mut Program) -> Result<(), Error> {
    if program.functions.iter().any(|function| function.system == Some(System::Allocate)) {
        let base = memory.allocate(Heap::BYTES);
        let base = base.ok_or_else(|| Error::new(0, format!("no memory left for a heap of {} bytes", Heap::BYTES)))?;
        program.heap = Some(Heap::new(base));
    }
    Ok(())
}

fn decode(
    module: &Module,
    functions: &[&Function],
    names: &HashMap<String, Binding>,
    program: &mut Program,
) -> Result<(), Error> {
    let platform = Platform::of(module);
    let mut code = Code::new(platform);
    for function in functions {
        for (directive, line) in &function.directives {
            let rows = DIRECTIVES.iter().filter(|row| row.0 == directive);
            platform.need(rows, *line, || format!(".{directive}"))?;
        }
    }
    let constant_bytes =
        module.variables.iter().filter(|v| v.space == Space::Const).map(Variable::bytes).sum::<u64>() as u32;
    // Variables that device functions use have one place in every kernel, before the kernel's own.
    let mut common = SharedLayout::new(window::RESERVED_SHARED);
    let mut common_names = names.clone();
    let in_functions: HashSet<&str> =
        functions.iter().filter(|f| !f.is_entry).flat_map(|f| f.body.iter()).flat_map(|b| mentioned(b)).collect();
    for variable in
        module.variables.iter().filter(|v| v.space == Space::Shared && in_functions.contains(v.name.as_str()))
    {
        if variable.elements.is_none() {
            return Err(Error::new(
                variable.line,
                format!("{}: dynamic shared memory in a device function is not supported", variable.name),
            ));
        }
        bind_shared(variable, common.place(variable)?, &mut common_names);
    }
    program.functions =
        functions.iter().map(|f| FunctionCode { name: f.name.clone(), ..FunctionCode::default() }).collect();
    // Device functions first: their bodies can declare shared variables, which every kernel must know.
    for (index, function) in functions.iter().enumerate().filter(|(_, f)| !f.is_entry) {
        let mut scope = Scope::new(common_names.clone());
        scope.open();
        // In the frame those in .param; those in .reg are loaded from there and stored to there.
        let mut place = |variables: &[Variable], accesses: &mut Vec<Access>| -> Result<Vec<_>, Error> {
            let mut places = Vec::new();
            for variable in variables {
                if !variable.in_register {
                    places.push((place_in_frame(variable, &mut scope)?, variable.bytes()));
                    continue;
                }
                scope.declare(variable.ty, &variable.name, None)?;
                let Some(Binding::Register(reg, ty)) = scope.find(&variable.name) else {
                    return Err(Error::new(variable.line, format!("{}: predicates are not passed", variable.name)));
                };
                let (access, at) = spill(reg, ty, &mut scope)?;
                accesses.push(access);
                places.push(at);
            }
            Ok(places)
        };
        let (mut stored, mut loaded) = (Vec::new(), Vec::new());
        let (results, parameters) = (place(&function.returns, &mut stored)?, place(&function.parameters, &mut loaded)?);
        code.epilogue = stored.into_iter().map(|access| Operation::Memory(Memory::Store(access))).collect();
        code.prologue = loaded.into_iter().map(|access| Operation::Memory(Memory::Load(access))).collect();
        let entry = code.instructions.len() as u32;
        if let Some(body) = &function.body {
            code.append(body, &mut scope, &mut |variable| common.place(variable), function.line)?;
        }
        let known = &mut program.functions[index];
        (known.entry, known.frame) = (function.body.as_ref().map(|_| entry), scope.frame);
        if function.body.is_none() {
            known.system = System::named(&function.name, &parameters, &results);
        }
        (known.parameters, known.results) = (parameters, results);
    }
    for (index, function) in functions.iter().enumerate().filter(|(_, f)| f.is_entry) {
        let Some(body) = &function.body else { continue };
        let (frame, entry, info) = kernel(module, function, body, &mut code, (names, &common_names, &common))?;
        let known = &mut program.functions[index];
        (known.entry, known.frame) = (Some(entry), frame);
        program.kernels.push(KernelInfo { constant_bytes, function: index as u32, ..info });
    }
    for call in &code.calls {
        if let Target::Function(index) = call.target {
            let callee = &program.functions[index as usize];
            if callee.entry.is_none() && callee.system.is_none() {
                let message = format!("function {} is called and has no body", callee.name);
                return Err(Error::new(functions[index as usize].line, message));
            }
        }
    }
    (program.instructions, program.tables, program.calls) = (code.instructions, code.tables, code.calls);
    program.wmma = code.wmma;
    Ok(())
}

/// The most bytes of a kernel's parameters, since PTX 8.1.
const MOST_PARAMETER_BYTES: u32 = 32764;

fn bind_shared(variable: &Variable, address: u64, names: &mut HashMap<String, Binding>) {
    let binding = Binding::Variable { space: Space::Shared, address, of_kernel: true, size: variable.bytes() };
    names.insert(variable.name.clone(), binding);
}

fn kernel(
    module: &Module,
    function: &Function,
    body: &[Statement],
    code: &mut Code,
    (names, common_names, common): (&HashMap<String, Binding>, &HashMap<String, Binding>, &SharedLayout),
) -> Result<(Frame, u32, KernelInfo), Error> {
    let mentioned: HashSet<&str> = mentioned(body).into_iter().collect();
    // A kernel that calls nothing does not pay for what device functions share.
    let calls = has_calls(body) && common.end > window::RESERVED_SHARED;
    let (mut names, mut layout) = if calls {
        (common_names.clone(), common.clone())
    } else {
        (names.clone(), SharedLayout::new(window::RESERVED_SHARED))
    };
    for variable in module.variables.iter().filter(|v| v.space == Space::Shared && mentioned.contains(v.name.as_str()))
    {
        if variable.elements.is_some() && !names.contains_key(&variable.name) {
            let address = layout.place(variable)?;
            bind_shared(variable, address, &mut names);
        }
    }
    // Variables in the body come after those of the module, and dynamic shared memory after all.
    let mut inner = layout.clone();
    place_inner(body, &mut inner)?;
    let dynamic: Vec<_> =
        module.variables.iter().filter(|v| v.space == Space::Shared && v.elements.is_none()).collect();
    let align =
        dynamic.iter().filter(|v| mentioned.contains(v.name.as_str())).map(|v| v.align).max().unwrap_or(1).max(16);
    let static_end = inner.end;
    let start = if static_end == window::RESERVED_SHARED { static_end } else { static_end.next_multiple_of(align) };
    for variable in dynamic {
        bind_shared(variable, u64::from(start), &mut names);
    }
    let mut scope = Scope::new(names);
    scope.open();
    let mut parameters = Vec::new();
    let mut end = 0_u32;
    for variable in &function.parameters {
        if variable.in_register {
            return Err(Error::new(variable.line, "parameters of a kernel are not in .reg"));
        }
        let offset = end.next_multiple_of(variable.align.max(1));
        let size = u32::try_from(variable.bytes()).unwrap_or(u32::MAX);
        end = offset.saturating_add(size);
        if end > MOST_PARAMETER_BYTES {
            return Err(Error::new(function.line, format!("more than {MOST_PARAMETER_BYTES} bytes of parameters")));
        }
        parameters.push((offset, size));
        let binding = Binding::Variable {
            space: Space::Param,
            address: u64::from(offset),
            of_kernel: true,
            size: u64::from(size),
        };
        scope.bind(&variable.name, binding);
    }
    let entry = code.instructions.len() as u32;
    code.append(body, &mut scope, &mut |variable| layout.place(variable), function.line)?;
    let info = KernelInfo {
        name: function.name.clone(),
        parameters,
        parameter_bytes: end,
        static_shared_bytes: start - window::RESERVED_SHARED,
        local_bytes: scope.frame.local_bytes as u32,
        registers: scope.frame.rows.min(255),
        max_threads: function
            .max_threads
            .or(function.required_threads)
            .map_or(1024, |n| n.iter().fold(1, |threads: u32, extent| threads.saturating_mul(*extent)).clamp(1, 1024)),
        required_threads: function.required_threads,
        required_cluster: function.required_cluster,
        ptx_version: module.version.0.saturating_mul(10).saturating_add(module.version.1),
        target: code.platform.target.map_or(0, |target| target.number),
        ..KernelInfo::default()
    };
    Ok((scope.frame, entry, info))
}

fn has_calls(body: &[Statement]) -> bool {
    body.iter().any(|statement| match statement {
        Statement::Instruction(instruction) => instruction.opcode.first().is_some_and(|word| &**word == "call"),
        Statement::Scope(inner) => has_calls(inner),
        _ => false,
    })
}

/// Every name that stands in an operand of the body.
fn mentioned(body: &[Statement]) -> Vec<&str> {
    use crate::ptx::syntax::Operand;
    fn operand<'a>(operand_: &'a Operand, names: &mut Vec<&'a str>) {
        match operand_ {
            Operand::Name(name) | Operand::Offset(name, _) | Operand::Address { base: Some(name), .. } => {
                names.push(name);
            }
            Operand::Vector(list) | Operand::List(list) => list.iter().for_each(|inner| operand(inner, names)),
            _ => {}
        }
    }
    let mut names = Vec::new();
    for statement in body {
        match statement {
            Statement::Instruction(instruction) => instruction.operands.iter().for_each(|o| operand(o, &mut names)),
            Statement::Scope(inner) => names.extend(mentioned(inner)),
            _ => {}
        }
    }
    names
}
