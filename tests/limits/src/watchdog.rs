//! A time limit for tests that would otherwise hang: when it runs out, every thread prints its stack and the process
//! aborts. Needs no debugger.

use std::backtrace::Backtrace;
use std::ffi::c_int;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How long one thread may take to print its stack: one that was stopped inside of the allocator never does.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs `body`; aborts the process, with every thread's stack on stderr, if that takes longer than `limit`.
///
/// # Panics
/// If there cannot be another thread, and where `body` does.
pub fn within<R>(limit: Duration, body: impl FnOnce() -> R) -> R {
    let (done, waiting) = channel::<()>();
    let watchdog = std::thread::Builder::new().name("watchdog".to_owned());
    let watchdog = watchdog.spawn(move || {
        if waiting.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
            say(&format!("watchdog: not finished after {limit:?}; the stack of every thread follows\n"));
            print_stacks();
            std::process::abort();
        }
    });
    let watchdog = watchdog.expect("a thread");
    let result = body();
    drop(done);
    watchdog.join().expect("the watchdog does not panic");
    result
}

/// Straight to stderr: what the print macros write, the test harness keeps, and an abort loses.
fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Stacks that have been printed.
static PRINTED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn print_stack(_: c_int) {
    let thread = std::thread::current();
    say(&format!("\nthread {:?}:\n{}\n", thread.name().unwrap_or("?"), Backtrace::force_capture()));
    PRINTED.fetch_add(1, Ordering::SeqCst);
}

/// One thread at a time. Of a handler little is allowed (no allocation, no lock), and this one does more: the process is
/// lost already, and a thread that does not answer is left out.
#[cfg(target_os = "linux")]
fn print_stacks() {
    // As in glibc since 2.30.
    unsafe extern "C" {
        fn signal(signal: c_int, handler: extern "C" fn(c_int)) -> usize;
        fn tgkill(process: c_int, thread: c_int, signal: c_int) -> c_int;
        fn gettid() -> c_int;
    }
    const SIGURG: c_int = 23;
    // SAFETY: the handler has the signature of one; nobody here uses this signal, which by default is ignored.
    let own = unsafe {
        signal(SIGURG, print_stack);
        gettid()
    };
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let threads = threads.filter_map(|entry| entry.file_name().to_str()?.parse::<c_int>().ok());
    for thread in threads.filter(|thread| *thread != own) {
        let (before, asked) = (PRINTED.load(Ordering::SeqCst), Instant::now());
        // SAFETY: a signal to a thread of this process; one that has ended meanwhile is an error that is passed over.
        if unsafe { tgkill(std::process::id() as c_int, thread, SIGURG) } != 0 {
            continue;
        }
        while PRINTED.load(Ordering::SeqCst) == before {
            if asked.elapsed() > PATIENCE {
                say(&format!("\nthread {thread} does not answer\n"));
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn print_stacks() {
    say("(stacks are printed on Linux only)\n");
}
