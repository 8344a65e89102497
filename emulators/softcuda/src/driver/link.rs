//! `cuLink*`: several PTX texts become one. What `cuLinkComplete` gives is called machine code and is none of anybody's
//! business but `cuModuleLoadData`'s: here it is PTX text.

use super::entry::{In, Out, Outcome, Text, entry_points, same_as};
use super::error::Code;
use super::host_memory::read_host;
use super::module::{Failure, Image, Options};
use super::state::{Handle, state};
use std::collections::HashSet;

/// `CUjitInputType`.
const PTX: u32 = 1;
const FAT_BINARY: u32 = 2;

/// A linking in progress.
#[derive(Default)]
pub(super) struct Linking {
    /// The texts so far.
    inputs: Vec<String>,
    /// The result, which lives as long as the linking does.
    result: Vec<u8>,
}

/// Joins texts: the first, and of the others what follows their heads, which must be the same as its. Linked once,
/// every name is defined once.
fn join(inputs: &[String]) -> Result<String, String> {
    let is_head =
        |line: &str| [".version", ".target", ".address_size"].iter().any(|word| line.trim_start().starts_with(word));
    let head = |input: &'_ String| -> Vec<String> {
        input.lines().filter(|line| is_head(line)).map(|line| line.trim().to_owned()).collect()
    };
    let mut joined = String::new();
    for input in inputs {
        if head(input) != head(&inputs[0]) {
            return Err(format!("{:?} and {:?} do not link", head(&inputs[0]), head(input)));
        }
        let first = std::ptr::eq(input, &raw const inputs[0]);
        for line in input.lines().filter(|line| first || !is_head(line)) {
            joined.push_str(line);
            joined.push('\n');
        }
    }
    let module = crate::ptx::parse(&joined).map_err(|error| error.to_string())?;
    let functions = module.functions.iter().filter(|function| function.body.is_some()).map(|function| &function.name);
    let variables = module.variables.iter().filter(|variable| !variable.external).map(|variable| &variable.name);
    let mut known = HashSet::new();
    match functions.chain(variables).find(|name| !known.insert(*name)) {
        None => Ok(joined),
        Some(name) => Err(format!("{name} is defined twice")),
    }
}

fn add(linking: Handle, kind: u32, image: Image) -> Outcome {
    if !matches!(kind, PTX | FAT_BINARY) {
        eprintln!("softcuda: cuLinkAdd: only PTX and fat binaries with PTX are linked");
        return Err(Code::NOT_SUPPORTED);
    }
    let capability = state().settings.compute_capability;
    let text = image.text(capability).map_err(Failure::code)?;
    let mut state = state();
    state.linkings.get_mut(&linking).ok_or(Code::INVALID_HANDLE)?.inputs.push(text);
    Ok(())
}

entry_points! {
    fn cuLinkCreate_v2(count: u32, options: In<u32>, values: In<u64>, linking: Out<Handle>) {
        linking.check()?;
        Options::read(count, options, values)?;
        let mut state = state();
        state.current()?;
        let handle = state.handle();
        state.linkings.insert(handle, Linking::default());
        linking.put(handle)
    }
    fn cuLinkAddData_v2(
        linking: Handle, kind: u32, data: In<u8>, bytes: usize, name: In<u8>,
        count: u32, options: In<u32>, values: In<u64>,
    ) {
        let _ = name;
        Options::read(count, options, values)?;
        let mut image = read_host(data.address() as u64, bytes)?;
        image.push(0);
        add(linking, kind, Image::of_bytes(&image))
    }
    fn cuLinkAddFile_v2(
        linking: Handle, kind: u32, path: Text, count: u32, options: In<u32>, values: In<u64>,
    ) {
        Options::read(count, options, values)?;
        let mut image = std::fs::read(path.get()?).map_err(|_| Code::FILE_NOT_FOUND)?;
        image.push(0);
        add(linking, kind, Image::of_bytes(&image))
    }
    fn cuLinkComplete(linking: Handle, image: Out<u64>, bytes: Out<usize>) {
        let mut state = state();
        let entry = state.linkings.get_mut(&linking).ok_or(Code::INVALID_HANDLE)?;
        match join(&entry.inputs) {
            Ok(text) => {
                entry.result = text.into_bytes();
                let length = entry.result.len();
                entry.result.push(0);
                image.put_if_wanted(entry.result.as_ptr() as u64);
                bytes.put_if_wanted(length);
                Ok(())
            }
            Err(message) => {
                eprintln!("softcuda: nothing was linked: {message}");
                Err(Code::INVALID_PTX)
            }
        }
    }
    fn cuLinkDestroy(linking: Handle) {
        let mut state = state();
        state.check_initialised()?;
        state.linkings.remove(&linking).map(drop).ok_or(Code::INVALID_HANDLE)
    }
}

same_as! {
    cuLinkCreate = cuLinkCreate_v2(count: u32, options: In<u32>, values: In<u64>, linking: Out<Handle>);
    cuLinkAddData = cuLinkAddData_v2(
        linking: Handle, kind: u32, data: In<u8>, bytes: usize, name: In<u8>,
        count: u32, options: In<u32>, values: In<u64>
    );
    cuLinkAddFile = cuLinkAddFile_v2(
        linking: Handle, kind: u32, path: Text, count: u32, options: In<u32>, values: In<u64>
    );
}
