//! Where releases of Xen want the same thing said in another way.
//!
//! Which release has what is [`Release`](crate::Release)'s to say. Here is what has to be compiled or called
//! differently.

use core::ffi::{c_int, c_ulong};

use xen_sys::{restore_callbacks, xc_interface, xen_domctl_createdomain};
use xen_types::DomId;

use super::handle::Handle;
use crate::domain::{Altp2m, DomainKind, DomainSpec};
use crate::error::Result;
use crate::release::BUILT;

/// What asks Xen to choose the number of a new domain: a number that no domain can have from 4.22 on, 0 before.
pub(super) const ANY_DOMID: u32 = if BUILT.domid_any_chooses() { DOMID_ANY } else { 0 };

/// `DOMID_ANY` (`xen/include/public/xen.h` of 4.21 and later).
const DOMID_ANY: u32 = 0x7ff5;

/// How many alternate tables libxl asks for where a configuration does not say it (`altp2m_count`, from 4.21 on).
#[cfg(altp2m = "options-and-count")]
const ALTP2M_COUNT: u16 = 10;

/// The set of emulated devices (`XEN_X86_EMU_*`) of a new domain.
pub(super) fn emulation_flags(kind: DomainKind, hvm_pirq: Option<bool>) -> u32 {
    match kind {
        DomainKind::Pv => 0,
        DomainKind::Pvh => xen_sys::XEN_X86_EMU_LAPIC,
        DomainKind::Hvm { .. } => {
            let all = xen_sys::XEN_X86_EMU_ALL & !xen_sys::XEN_X86_EMU_VPCI;
            let has_pirq = hvm_pirq.unwrap_or(!BUILT.hvm_pirq_is_optional());
            if has_pirq { all } else { all & !xen_sys::XEN_X86_EMU_USE_PIRQ }
        }
    }
}

/// Says in a new domain's description which alternate p2m tables it may have, where the description has a place for
/// it.
#[cfg(altp2m = "parameter")]
pub(super) const fn describe_altp2m(_config: &mut xen_domctl_createdomain, _mode: Altp2m) {}

/// Says in a new domain's description which alternate p2m tables it may have.
#[cfg(altp2m = "options")]
pub(super) const fn describe_altp2m(config: &mut xen_domctl_createdomain, mode: Altp2m) {
    config.altp2m_opts = mode as u32;
}

/// Says in a new domain's description which alternate p2m tables it may have, and how many.
#[cfg(altp2m = "options-and-count")]
pub(super) const fn describe_altp2m(config: &mut xen_domctl_createdomain, mode: Altp2m) {
    config.altp2m.opts = mode as u16;
    config.altp2m.nr = if matches!(mode, Altp2m::Disabled) { 0 } else { ALTP2M_COUNT };
}

/// Does for a domain that was just made what its description has no place for.
pub(super) fn complete(handle: &Handle, domid: DomId, spec: &DomainSpec) -> Result<()> {
    if spec.altp2m == Altp2m::Disabled || BUILT.altp2m_is_set_at_creation() {
        return Ok(());
    }
    // SAFETY: the call takes numbers only.
    handle.call("xc_hvm_param_set", Some(domid), |xc| unsafe {
        xen_sys::xc_hvm_param_set(xc, domid.get().into(), xen_sys::HVM_PARAM_ALTP2M, spec.altp2m as u64)
    })?;
    Ok(())
}

/// The rings of a domain that is restored: its own ports, and the domains that hold the other ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rings {
    pub(super) store_port: u32,
    pub(super) store_peer: u32,
    pub(super) console_port: u32,
    pub(super) console_peer: u32,
}

/// Calls `xc_domain_restore` for a plain stream; writes the frames of the xenstore ring and of the console ring.
///
/// # Safety
/// The connection must be open, and the callbacks must live until this returns.
pub(super) unsafe fn restore(
    xc: *mut xc_interface,
    stream: c_int,
    domid: DomId,
    rings: &Rings,
    frames: &mut [c_ulong; 2],
    callbacks: *mut restore_callbacks,
) -> c_int {
    let [store, console] = frames;
    // SAFETY: as the caller guarantees; the numbers are those that the call writes. The descriptor at the end is for a
    // replicated domain only, and the flags that follow it are none.
    unsafe {
        xen_sys::xc_domain_restore(
            xc,
            stream,
            domid.get().into(),
            rings.store_port,
            store,
            rings.store_peer,
            rings.console_port,
            console,
            rings.console_peer,
            xen_sys::XC_STREAM_PLAIN,
            callbacks,
            -1,
            #[cfg(restore = "with-memory-flags")]
            0,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::real::describe::create_config;

    fn hvm() -> DomainSpec {
        DomainSpec::new(DomainKind::Hvm { hap: true, nested: false }, [0; 16], 1)
    }

    #[test]
    fn emulated_interrupts_have_event_channels_as_the_release_has_it() {
        let (all, none) = (0x3ff, 0x1ff);
        let flags = |pirq| emulation_flags(DomainKind::Hvm { hap: true, nested: false }, pirq);
        assert_eq!((flags(Some(true)), flags(Some(false))), (all, none));
        assert_eq!(flags(None), if BUILT.minor >= 19 { none } else { all });
        assert_eq!(emulation_flags(DomainKind::Pv, Some(true)), 0);
        assert_eq!(emulation_flags(DomainKind::Pvh, Some(true)), 1);
    }

    #[test]
    fn alternate_tables_are_asked_for_where_the_release_has_a_place_for_it() {
        let bytes = |mode| {
            let mut spec = hvm();
            spec.altp2m = mode;
            let config = create_config(&spec);
            // SAFETY: the structure is plain numbers without gaps.
            let bytes: &[u8] = unsafe {
                std::slice::from_raw_parts((&raw const config).cast(), size_of::<xen_domctl_createdomain>())
            };
            bytes.get(48..52).map(<[u8]>::to_vec)
        };
        let expected = match BUILT.minor {
            ..19 => [0, 0, 0, 0],
            19 | 20 => [3, 0, 0, 0],
            _ => [3, 0, 10, 0],
        };
        assert_eq!(bytes(Altp2m::Limited), Some(expected.to_vec()));
        assert_eq!(bytes(Altp2m::Disabled), Some(vec![0; 4]));
    }

    #[test]
    fn xen_is_asked_to_choose_a_number_by_a_word_that_it_knows() {
        assert_eq!(ANY_DOMID, if BUILT.minor >= 22 { 0x7ff5 } else { 0 });
    }
}
