//! CPUID leaves as libxenguest takes them.

use core::ffi::c_char;
use core::ptr;
use std::ffi::CString;

use xen_sys::xc_xend_cpuid;

use super::image::c_string;
use crate::cpuid::CpuidLeaf;
use crate::error::Result;

/// CPUID leaves as the library takes them, with the texts that they point to.
pub(super) struct CpuidTable {
    pub(super) entries: Vec<xc_xend_cpuid>,
    _texts: Vec<CString>,
}

impl CpuidTable {
    pub(super) fn new(leaves: &[CpuidLeaf]) -> Result<Self> {
        let mut texts = Vec::new();
        let mut entries = Vec::new();
        for leaf in leaves {
            let mut policy = [ptr::null_mut(); 4];
            for (slot, bits) in policy.iter_mut().zip(&leaf.registers) {
                if let Some(bits) = bits {
                    let text = c_string("set a CPUID leaf", "A register", bits.as_str())?;
                    // The library only reads it, though its type does not say so.
                    *slot = text.as_ptr().cast_mut();
                    texts.push(text);
                }
            }
            entries.push(entry(leaf.leaf, leaf.subleaf.unwrap_or(xen_sys::XEN_CPUID_INPUT_UNUSED), policy));
        }
        let end = xen_sys::XEN_CPUID_INPUT_UNUSED;
        entries.push(entry(end, end, [ptr::null_mut(); 4]));
        Ok(Self { entries, _texts: texts })
    }
}

fn entry(leaf: u32, subleaf: u32, policy: [*mut c_char; 4]) -> xc_xend_cpuid {
    let input = xen_sys::xc_xend_cpuid__bindgen_ty_1 { input: [leaf, subleaf] };
    xc_xend_cpuid { __bindgen_anon_1: input, policy }
}
