//! Synchronisation through memory: what a reader of a flag finds there.

use super::clock::Knowledge;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

const STRIPES: usize = 16;

/// How far an operation may reach: its block, its cluster, the device.
pub(super) const LEVELS: usize = 3;

/// A thread that reads or writes a flag, as far as it matters for who hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reader {
    pub(super) block: u32,
    /// The first block of its cluster.
    pub(super) team: u32,
    /// How far its operation reaches.
    pub(super) level: usize,
}

/// What a write publishes, by how far both its fence and itself reach; or what a read finds, by how far it must reach
/// to learn it.
#[derive(Clone, Debug)]
pub struct Message {
    from: Reader,
    pub(super) known: [Option<Knowledge>; LEVELS],
}

impl Message {
    /// An empty one.
    pub(super) fn from(from: Reader) -> Self {
        Self { from, known: Default::default() }
    }
}

/// What was published at one address.
#[derive(Debug, Default)]
struct Flag {
    /// To everybody on the device.
    device: Option<Knowledge>,
    /// To the cluster with this first block (level 1), to this block (level 0): what came from there, whether or not it
    /// reached further.
    near: HashMap<(usize, u32), Knowledge>,
}

impl Flag {
    fn publish(&mut self, message: &Message) {
        let Message { from, known } = message;
        for (key, known) in [(0, from.block), (1, from.team)].into_iter().zip(known) {
            let Some(known) = known else { continue };
            self.near.entry(key).and_modify(|old| old.learn(known)).or_insert_with(|| known.clone());
        }
        if let Some(known) = &known[2] {
            match &mut self.device {
                Some(device) => device.learn(known),
                device => *device = Some(known.clone()),
            }
        }
    }

    fn find(&self, reader: Reader) -> Option<Message> {
        let mut message = Message::from(reader);
        message.known[0] = self.near.get(&(0, reader.block)).cloned();
        if reader.level >= 1 {
            message.known[1] = self.near.get(&(1, reader.team)).cloned();
        }
        if reader.level >= 2 {
            message.known[2].clone_from(&self.device);
        }
        message.known.iter().any(Option::is_some).then_some(message)
    }
}

/// The records of one launch (global memory) or block (shared memory): at an address, the knowledge that was published
/// with the values written there.
///
/// A record is published before its value can be seen (for an atomic: in the closure that computes the new value) and
/// looked up after the value was read; then whoever reads the value finds the record. Records accumulate: a later write
/// adds to what the earlier ones published, although a plain store starts anew in the PTX memory model. So a missed
/// race is possible where a flag is used again and a reader takes the value of an unfenced write; a false race is not.
#[derive(Debug, Default)]
pub struct SyncTable {
    any: AtomicBool,
    stripes: [Mutex<HashMap<u64, Flag>>; STRIPES],
}

impl SyncTable {
    /// Adds to what readers of `address` find.
    pub fn publish_at(&self, address: u64, message: &Message) {
        self.any.store(true, Ordering::Release);
        self.stripe(address)
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(address)
            .or_default()
            .publish(message);
    }

    /// What this reader of `address` finds, if anything was published there for it. Costs one load while nothing was
    /// published anywhere.
    #[inline]
    pub fn message_at(&self, address: u64, reader: Reader) -> Option<Message> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        self.stripe(address).lock().unwrap_or_else(PoisonError::into_inner).get(&address)?.find(reader)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        if std::mem::take(self.any.get_mut()) {
            for records in &mut self.stripes {
                records.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
            }
        }
    }

    fn stripe(&self, address: u64) -> &Mutex<HashMap<u64, Flag>> {
        &self.stripes[(address >> 2) as usize % STRIPES]
    }
}
