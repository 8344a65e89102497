//! Names the shared library as NCCL is named, so that once it is loaded a later `dlopen("libnccl.so")` finds it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libnccl.so");
    }
}
