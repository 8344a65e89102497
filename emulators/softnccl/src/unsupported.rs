//! Every other name of NCCL's interface: it is there, so that a program that only looks it up finds it, and says so when it is
//! called.

use std::ffi::c_int;

/// Declares functions that are not supported. Their arguments are never looked at, so that they need not be declared.
macro_rules! unsupported {
    ($($name:ident)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name() -> c_int {
            crate::api::unsupported(
                const {
                    match std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                        Ok(name) => name,
                        Err(_) => c"?",
                    }
                },
            )
        }
    )*};
}

#[rustfmt::skip]
unsupported! {
    ncclAlltoAll ncclCommDeregister ncclCommGetUniqueId ncclCommGrow ncclCommInitRankScalable ncclCommMemStats ncclCommRegister
    ncclCommResume ncclCommRevoke ncclCommShrink ncclCommSplit ncclCommSuspend ncclCommWindowDeregister ncclCommWindowRegister
    ncclGather ncclGroupSimulateEnd ncclMemAlloc ncclMemFree ncclParamBind ncclParamDumpAll ncclParamGet
    ncclParamGetAllParameterKeys ncclParamGetI16 ncclParamGetI32 ncclParamGetI64 ncclParamGetI8 ncclParamGetParameter ncclParamGetStr
    ncclParamGetU16 ncclParamGetU32 ncclParamGetU64 ncclParamGetU8 ncclPutSignal ncclRedOpCreatePreMulSum ncclRedOpDestroy
    ncclResetDebugInit ncclScatter ncclSignal ncclWaitSignal ncclWinGetUserPtr
}
