//! Target ids on the device, from what cudarc has.

use crate::cuda::{Targets, View};
use cudarc::driver::{CudaSlice, CudaView};

macro_rules! targets_from {
    ($($id:ty => $variant:ident),*) => {$(
        impl<'a> From<View<'a, $id>> for Targets<'a> {
            fn from(ids: View<'a, $id>) -> Self {
                Targets::$variant(ids)
            }
        }

        impl<'a> From<CudaView<'a, $id>> for Targets<'a> {
            fn from(ids: CudaView<'a, $id>) -> Self {
                Targets::$variant(ids.into())
            }
        }

        impl<'a> From<&CudaView<'a, $id>> for Targets<'a> {
            fn from(ids: &CudaView<'a, $id>) -> Self {
                ids.slice(..).into()
            }
        }

        impl<'a> From<&'a CudaSlice<$id>> for Targets<'a> {
            fn from(ids: &'a CudaSlice<$id>) -> Self {
                Targets::$variant(ids.into())
            }
        }
    )*};
}

targets_from!(u32 => U32, i64 => I64);
