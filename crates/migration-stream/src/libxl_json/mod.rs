//! libxl's JSON of a guest (`libxl_domain_config`): written for stock xl, and read from it.
//!
//! Keys are the names of `tools/libs/light/libxl_types.idl`, words are in lower case, a bitmap is the list of the numbers
//! of its set bits, and `type.hvm` is the member of a union. What is at its default may be left out; libxl ignores what
//! it does not know.
//!
//! [`decode`] translates the JSON to the language of xl.cfg(5) and lets the crate `config` read it, so that its rules
//! exist once. What changes nothing in the guest is ignored and listed.

mod decode;
mod devices;
mod encode;
mod error;
mod fields;
mod lines;
mod tables;

pub use decode::{Decoded, MAX_JSON, decode};
pub use encode::{Facts, encode};
pub use error::JsonError;
