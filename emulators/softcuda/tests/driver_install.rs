//! Putting the software driver in place: once, by every name that cudarc tries, from many threads.

mod driver_support;

use cudarc::driver::CudaContext;
use driver_support::alone;
use softcuda::{Installed, Settings};

#[test]
fn the_library_is_found_beside_the_test() {
    let _alone = alone(&Settings::default());
    let Installed::Software(path) = softcuda::install_always().unwrap() else { panic!("not the software driver") };
    assert!(path.ends_with("libsoftcuda.so"), "{}", path.display());
}

#[test]
fn installing_again_from_many_threads_gives_the_same() {
    let _alone = alone(&Settings::default());
    let first = softcuda::install_always().unwrap();
    let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(softcuda::install_always)).collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap().unwrap(), first);
    }
}

#[test]
fn cudarc_finds_it_by_its_first_name() {
    let _alone = alone(&Settings::default());
    let names = cudarc::get_lib_name_candidates("cuda");
    assert_eq!(names[0], "libcuda.so");
    // SAFETY: asks for the library's presence only.
    assert!(unsafe { cudarc::driver::sys::is_culib_present() });
    assert_eq!(CudaContext::new(0).unwrap().name().unwrap(), "softcuda sm_90");
}
