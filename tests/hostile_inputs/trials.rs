//! Runs walks, keeps what failed, and notices when one hangs.

use crate::hostile::{Choices, Script};
use std::any::Any;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// A walk that has not come back after so long never will: the slowest takes milliseconds.
const HANGS: Duration = Duration::from_secs(120);

/// Different failures shown; more would be the same again.
const SHOWN: usize = 24;

/// A series of walks on a thread of its own.
pub(crate) struct Trials {
    /// What is about to run.
    progress: Sender<Option<String>>,
    count: usize,
    /// The first script for every place that panicked.
    failures: BTreeMap<String, String>,
    called: BTreeSet<String>,
}

/// A panic of a walk is a finding, and told with its script; elsewhere it stays what it is.
static HOOK: Once = Once::new();

/// How many walks were made, what failed, what was called.
type Findings = (usize, BTreeMap<String, String>, BTreeSet<String>);

thread_local! {
    /// Where the last panic of this thread was.
    static PANICKED: std::cell::RefCell<Option<String>> = const { std::cell::RefCell::new(None) };
}

impl Trials {
    /// Runs `series` on a thread that is watched; fails with everything that it found.
    pub(crate) fn run(what: &str, series: impl FnOnce(&mut Self) + Send + 'static) {
        let (count, failures, _) = Self::watched(what, series);
        println!("{what}: {count} walks");
        if !failures.is_empty() {
            let mut told: Vec<String> = failures.iter().map(|(place, told)| format!("{place}: {told}")).collect();
            told.truncate(SHOWN);
            panic!("{what}, {} failures:\n{}", failures.len(), told.join("\n"));
        }
    }

    /// Runs `series` for the public functions that it calls; what fails is for [`run`](Self::run) to tell.
    pub(crate) fn collect_calls(series: impl FnOnce(&mut Self) + Send + 'static) -> BTreeSet<String> {
        Self::watched("inventory", series).2
    }

    fn watched(what: &str, series: impl FnOnce(&mut Self) + Send + 'static) -> Findings {
        let (progress, watched) = channel();
        HOOK.call_once(|| {
            let usual = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                PANICKED.with_borrow_mut(|place| *place = info.location().map(ToString::to_string));
                if std::thread::current().name() != Some("trials") {
                    usual(info);
                }
            }));
        });
        let worker = std::thread::Builder::new()
            .name("trials".to_owned())
            .spawn(move || {
                let mut trials = Self { progress, count: 0, failures: BTreeMap::new(), called: BTreeSet::new() };
                series(&mut trials);
                let _ = trials.progress.send(None);
                (trials.count, trials.failures, trials.called)
            })
            .expect("a thread");
        let mut last = String::new();
        loop {
            match watched.recv_timeout(HANGS) {
                Ok(Some(script)) => last = script,
                Ok(None) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("{what}: hangs in {last}"),
            }
        }
        worker.join().unwrap_or_else(|panic| panic!("{what}: {}", message(&*panic)))
    }

    /// One walk. Gives the alternatives that its choices had.
    fn walk(&mut self, name: &str, walk: fn(&mut Choices<'_>), script: Script<'_>) -> Vec<usize> {
        self.count += 1;
        let _ = self.progress.send(Some(format!("{name} {script:?}")));
        let mut choices = Choices::new(script);
        let outcome = catch_unwind(AssertUnwindSafe(|| walk(&mut choices)));
        self.called.extend(choices.called.drain(..));
        if let Err(panic) = outcome {
            self.failed(name, &format!("{script:?}"), &*panic);
        }
        choices.alternatives
    }

    /// Follows bytes.
    pub(crate) fn script(&mut self, name: &str, walk: fn(&mut Choices<'_>), bytes: &[u8]) {
        self.walk(name, walk, Script::Bytes(bytes));
    }

    /// Follows bytes through a body of its own.
    pub(crate) fn bytes(&mut self, bytes: &[u8], body: fn(&[u8])) {
        self.count += 1;
        let _ = self.progress.send(Some(format!("{bytes:?}")));
        if let Err(panic) = catch_unwind(|| body(bytes)) {
            self.failed("bytes", &format!("{bytes:?}"), &*panic);
        }
    }

    fn failed(&mut self, name: &str, script: &str, panic: &(dyn Any + Send)) {
        let place = PANICKED.with_borrow_mut(Option::take).unwrap_or_default();
        self.failures
            .entry(format!("{name} at {place}"))
            .or_insert_with(|| format!("{script}\n    {}", message(panic)));
    }

    /// The usual calls.
    pub(crate) fn usual(&mut self, name: &str, walk: fn(&mut Choices<'_>)) {
        self.walk(name, walk, Script::Deviations(&[]));
    }

    /// The usual calls, and every script that has one unusual choice.
    pub(crate) fn single_deviations(&mut self, name: &str, walk: fn(&mut Choices<'_>)) {
        self.some_single_deviations(name, walk, usize::MAX);
    }

    /// The same, but `most` of them, evenly spread.
    pub(crate) fn some_single_deviations(&mut self, name: &str, walk: fn(&mut Choices<'_>), most: usize) {
        let usual = self.walk(name, walk, Script::Deviations(&[]));
        let positions = usual.iter().enumerate();
        let singles: Vec<_> =
            positions.flat_map(|(position, of)| (1..*of).map(move |value| [(position, value)])).collect();
        self.spread(name, walk, &singles, most);
    }

    /// Scripts that have two unusual choices: all of them, or `most`, evenly spread.
    pub(crate) fn pairs_of_deviations(&mut self, name: &str, walk: fn(&mut Choices<'_>), most: usize) {
        let mut pairs = Vec::new();
        let usual = self.walk(name, walk, Script::Deviations(&[]));
        for (position, alternatives) in usual.iter().enumerate() {
            for value in 1..*alternatives {
                let first = (position, value);
                // The choices behind it may be others than the usual script's.
                let then = self.walk(name, walk, Script::Deviations(&[first]));
                for (position, alternatives) in then.iter().enumerate().skip(position + 1) {
                    pairs.extend((1..*alternatives).map(|value| [first, (position, value)]));
                }
            }
        }
        self.spread(name, walk, &pairs, most);
    }

    /// `most` of these scripts, evenly spread.
    fn spread<const N: usize>(
        &mut self,
        name: &str,
        walk: fn(&mut Choices<'_>),
        scripts: &[[(usize, usize); N]],
        most: usize,
    ) {
        let count = scripts.len().min(most);
        for index in 0..count {
            self.walk(name, walk, Script::Deviations(&scripts[index * scripts.len() / count]));
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}
