//! Synchronisation through memory: what a reader of a flag learns.

use super::clock::Knowledge;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

const STRIPES: usize = 16;

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
    stripes: [Mutex<HashMap<u64, Knowledge>>; STRIPES],
}

impl SyncTable {
    /// Adds to what a reader of `address` learns.
    pub fn publish_at(&self, address: u64, knowledge: Knowledge) {
        self.any.store(true, Ordering::Release);
        let mut records = self.stripe(address).lock().unwrap_or_else(PoisonError::into_inner);
        match records.entry(address) {
            Entry::Occupied(mut record) => record.get_mut().learn(&knowledge),
            Entry::Vacant(place) => {
                place.insert(knowledge);
            }
        }
    }

    /// What a reader of `address` learns, if anything was published there. Costs one load while nothing was published
    /// anywhere.
    #[inline]
    pub fn knowledge_at(&self, address: u64) -> Option<Knowledge> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        self.stripe(address).lock().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        if std::mem::take(self.any.get_mut()) {
            for records in &mut self.stripes {
                records.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
            }
        }
    }

    fn stripe(&self, address: u64) -> &Mutex<HashMap<u64, Knowledge>> {
        &self.stripes[(address >> 2) as usize % STRIPES]
    }
}
