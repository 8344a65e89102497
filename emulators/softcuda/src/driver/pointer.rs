//! What is known of a pointer.

use super::entry::{In, Out, Outcome, entry_points};
use super::error::Code;
use super::state::{Kind, State, state};

/// `CUmemorytype`.
const HOST: u32 = 1;
const DEVICE: u32 = 2;

/// The value of an attribute, by its size.
enum Value {
    Bits32(u32),
    Bits64(u64),
}

impl Value {
    fn put(&self, place: Out<u64>) -> Outcome {
        match *self {
            Self::Bits32(value) => place.cast::<u32>().put(value),
            Self::Bits64(value) => place.put(value),
        }
    }
}

impl State {
    /// A `CUpointer_attribute` of an address.
    fn pointer_attribute(&self, attribute: u32, address: u64) -> Outcome<Value> {
        let found = self.allocation(address);
        let module_variable = found.is_none().then(|| self.variable(address)).flatten();
        let (base, bytes, context, ordinal, kind, id) = match (found, module_variable) {
            (Some((base, entry)), _) => (base, entry.bytes, entry.context, entry.ordinal, entry.kind, entry.id),
            (None, Some((base, bytes, context))) => {
                (base, bytes, context, self.context(context)?.ordinal, Kind::Device, base)
            }
            (None, None) => return Err(Code::INVALID_VALUE),
        };
        let on_host = matches!(kind, Kind::Host(_) | Kind::Registered(_));
        Ok(match attribute {
            1 => Value::Bits64(context),
            2 => Value::Bits32(if on_host { HOST } else { DEVICE }),
            3 => Value::Bits64(address),
            4 if on_host || kind == Kind::Managed => Value::Bits64(address),
            7 | 20 => Value::Bits64(id),
            8 => Value::Bits32(u32::from(kind == Kind::Managed)),
            9 => Value::Bits32(ordinal),
            11 | 19 => Value::Bits64(base),
            12 | 18 => Value::Bits64(bytes),
            13 => Value::Bits32(1),
            14 => Value::Bits64(0),
            6 | 10 | 15 | 21 => Value::Bits32(0),
            // Read and written.
            16 => Value::Bits32(3),
            17 => Value::Bits64(found.and_then(|(_, entry)| entry.pool).unwrap_or(0)),
            _ => return Err(Code::INVALID_VALUE),
        })
    }

    /// The variable of a module that holds an address: its base, bytes, context.
    fn variable(&self, address: u64) -> Option<(u64, u64, u64)> {
        let machine = self.device.as_ref()?;
        let machine = machine.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let range = machine.memory.containing(address)?;
        let context = super::state::with_current(|stack| stack.last().copied())?;
        self.contexts.contains_key(&context).then_some((range.base, range.bytes, context))
    }
}

entry_points! {
    fn cuPointerGetAttribute(value: Out<u64>, attribute: u32, address: u64) {
        value.check()?;
        let state = state();
        state.check_initialised()?;
        state.pointer_attribute(attribute, address)?.put(value)
    }
    fn cuPointerGetAttributes(count: u32, attributes: In<u32>, values: In<Out<u64>>, address: u64) {
        let state = state();
        state.check_initialised()?;
        for index in 0..count as usize {
            let (attribute, place) = (attributes.at(index)?, values.at(index)?);
            match state.pointer_attribute(attribute, address) {
                Ok(value) => value.put(place)?,
                // An address of no allocation is not an error here: its attributes are 0.
                Err(_) if matches!(attribute, 2 | 8 | 9 | 13) => Value::Bits32(0).put(place)?,
                Err(_) => Value::Bits64(0).put(place)?,
            }
        }
        Ok(())
    }
    fn cuPointerSetAttribute(value: In<u32>, attribute: u32, address: u64) {
        let state = state();
        state.check_initialised()?;
        value.get()?;
        // Only synchronous memory operations can be asked for.
        if attribute != 6 || state.allocation(address).is_none() {
            return Err(Code::INVALID_VALUE);
        }
        Ok(())
    }
}
