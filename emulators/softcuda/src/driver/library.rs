//! Libraries: modules that are not tied to a context in CUDA; here, of the context that was current when they were
//! loaded.

use super::entry::{In, Out, Outcome, Text, entry_points};
use super::error::Code;
use super::module::{Image, Options, load, load_file, unload, variable};
use super::state::{Handle, Library, State, state};

impl State {
    fn library(&self, library: Handle) -> Outcome<Handle> {
        self.check_initialised()?;
        self.libraries.get(&library).map(|library| library.module).ok_or(Code::INVALID_HANDLE)
    }

    fn new_library(&mut self, module: Handle) -> Handle {
        let handle = self.handle();
        self.libraries.insert(handle, Library { module });
        handle
    }
}

entry_points! {
    fn cuLibraryLoadData(
        library: Out<Handle>, code: In<u8>, options: In<u32>, values: In<u64>, count: u32,
        library_options: In<u32>, library_values: In<u64>, library_count: u32,
    ) {
        library.check()?;
        let _ = (library_options, library_values, library_count);
        let module = load(Image::of_caller(code), &Options::read(count, options, values)?)?;
        let handle = state().new_library(module);
        library.put(handle)
    }
    fn cuLibraryLoadFromFile(
        library: Out<Handle>, name: Text, options: In<u32>, values: In<u64>, count: u32,
        library_options: In<u32>, library_values: In<u64>, library_count: u32,
    ) {
        library.check()?;
        let _ = (library_options, library_values, library_count);
        let module = load_file(name, &Options::read(count, options, values)?)?;
        let handle = state().new_library(module);
        library.put(handle)
    }
    fn cuLibraryUnload(library: Handle) {
        let module = {
            let mut state = state();
            let module = state.library(library)?;
            state.libraries.remove(&library);
            module
        };
        unload(module)
    }
    fn cuLibraryGetModule(module: Out<Handle>, library: Handle) {
        module.put(state().library(library)?)
    }
    fn cuLibraryGetKernel(kernel: Out<Handle>, library: Handle, name: Text) {
        kernel.check()?;
        let name = name.get()?;
        let mut state = state();
        let module = state.library(library)?;
        kernel.put(state.function_named(module, &name)?)
    }
    fn cuLibraryGetKernelCount(count: Out<u32>, library: Handle) {
        let state = state();
        let module = state.library(library)?;
        count.put(state.module(module)?.program.kernels().len() as u32)
    }
    fn cuLibraryEnumerateKernels(kernels: Out<Handle>, room: u32, library: Handle) {
        kernels.check()?;
        let mut state = state();
        let module = state.library(library)?;
        let count = state.module(module)?.program.kernels().len();
        for kernel in 0..count.min(room as usize) {
            let handle = state.function_of(module, kernel)?;
            kernels.put_at(kernel, handle)?;
        }
        Ok(())
    }
    fn cuLibraryGetGlobal(address: Out<u64>, bytes: Out<usize>, library: Handle, name: Text) {
        let module = state().library(library)?;
        variable(address, bytes, module, name)
    }
    fn cuKernelGetFunction(function: Out<Handle>, kernel: Handle) {
        // A kernel and its function have the same handle here.
        let state = state();
        state.function(kernel)?;
        function.put(kernel)
    }
    fn cuKernelGetLibrary(library: Out<Handle>, kernel: Handle) {
        let state = state();
        let module = state.function(kernel)?.module;
        let found = state.libraries.iter().find(|(_, library)| library.module == module);
        library.put(*found.ok_or(Code::INVALID_HANDLE)?.0)
    }
}
