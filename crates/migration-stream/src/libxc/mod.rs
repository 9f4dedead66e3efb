//! libxc's stream, checked as it passes by. libxenguest writes and reads it.
//!
//! ```text
//! image header  := ~0:u64  0x58454e46:u32be  version:u32be = 3  options:u16be = 0  0[6]
//! domain header := type:u32 = 2 (HVM)  page_shift:u16 = 12  0:u16  xen_major:u32  xen_minor:u32
//! record        := type:u32  length:u32  body[length]  0…              padded to 8 bytes
//! PAGE_DATA     := count:u32 (1 to 1024)  0:u32  {pfn | type << 60}:u64[count]  page[4096]…
//! HVM_PARAMS    := count:u32  0:u32  {index:u64 value:u64}[count]
//! ```
//!
//! Records come in this order, each once, but PAGE_DATA any number of times: CPUID_POLICY, MSR_POLICY,
//! STATIC_DATA_END, PAGE_DATA, TSC_INFO, HVM_CONTEXT, HVM_PARAMS, END. Entries of PAGE_DATA with a type from 13 to 15
//! have no page. A record whose type has bit 31 can be ignored.

mod checker;
mod record;

pub use checker::{Checker, Summary};
