use super::*;
use crate::cpuid::CpuidLeaf;
use crate::domain::DomainKind;

#[test]
fn an_hvm_domain_has_all_emulated_devices_but_vpci() {
    let mut spec = DomainSpec::new(DomainKind::Hvm { hap: true, nested: false }, [3; 16], 4);
    spec.max_grant_frames = Some(64);
    spec.hvm_pirq = Some(true);
    let config = create_config(&spec);
    assert_eq!(config.flags, xen_sys::XEN_DOMCTL_CDF_hvm | xen_sys::XEN_DOMCTL_CDF_hap);
    assert_eq!(config.arch.emulation_flags, 0x3ff);
    assert_eq!((config.max_grant_frames, config.max_maptrack_frames), (64, -1));
    assert_eq!((config.max_vcpus, config.max_evtchn_port, config.grant_opts), (4, 1023, 2));
    assert_eq!(config.handle, [3; 16]);
}

#[test]
fn a_pv_domain_has_no_emulated_devices() {
    let mut spec = DomainSpec::new(DomainKind::Pv, [0; 16], 1);
    spec.passthrough = true;
    let config = create_config(&spec);
    assert_eq!(config.flags, xen_sys::XEN_DOMCTL_CDF_iommu);
    assert_eq!(config.arch.emulation_flags, 0);
}

#[test]
fn a_pvh_domain_has_a_local_apic_only() {
    let config = create_config(&DomainSpec::new(DomainKind::Pvh, [0; 16], 1));
    assert_eq!(config.flags, xen_sys::XEN_DOMCTL_CDF_hvm | xen_sys::XEN_DOMCTL_CDF_hap);
    assert_eq!(config.arch.emulation_flags, xen_sys::XEN_X86_EMU_LAPIC);
}

#[test]
fn a_domain_that_crashed_says_so() {
    let raw = xen_domctl_getdomaininfo {
        domain: 5,
        flags: xen_sys::XEN_DOMINF_shutdown | xen_sys::XEN_DOMINF_hvm_guest | (3 << 16),
        tot_pages: 256,
        max_pages: u64::MAX,
        max_vcpu_id: u32::MAX,
        ..Default::default()
    };
    let info = domain_info(&raw).expect("5 is a domain's number");
    assert_eq!(info.state.shutdown, Some(ShutdownReason::Crash));
    assert_eq!(info.state.to_string(), "----c-");
    assert_eq!((info.memory, info.max_vcpus, info.hvm), (KiB(1024), 0, true));
}

#[test]
fn the_domains_that_xen_keeps_for_itself_are_left_out() {
    let raw = xen_domctl_getdomaininfo { domain: 0x7ff2, ..Default::default() };
    assert_eq!(domain_info(&raw), None);
}

#[test]
fn a_cpuid_table_ends_where_the_library_looks_for_the_end() {
    let bits: crate::cpuid::CpuidBits = "1".repeat(32).parse().expect("32 letters");
    let leaf = CpuidLeaf { leaf: 7, subleaf: Some(0), registers: [None, Some(bits), None, None] };
    let table = CpuidTable::new(&[leaf]).expect("a leaf");
    // SAFETY: both members of the union are two numbers.
    let inputs: Vec<[u32; 2]> =
        table.entries.iter().map(|entry| unsafe { entry.__bindgen_anon_1.input }).collect();
    assert_eq!(inputs, [[7, 0], [u32::MAX, u32::MAX]]);
    let set: Vec<bool> = table.entries[0].policy.iter().map(|policy| !policy.is_null()).collect();
    assert_eq!(set, [false, true, false, false]);
    // SAFETY: the table keeps the text.
    let text = unsafe { CStr::from_ptr(table.entries[0].policy[1]) };
    assert_eq!(text.to_bytes(), [b'1'; 32]);
}

#[test]
fn the_numbers_of_parameters_and_reasons_are_those_of_the_headers() {
    for (param, number) in [
        (HvmParam::StoreEvtchn, xen_sys::HVM_PARAM_STORE_EVTCHN),
        (HvmParam::Viridian, xen_sys::HVM_PARAM_VIRIDIAN),
        (HvmParam::TimerMode, xen_sys::HVM_PARAM_TIMER_MODE),
        (HvmParam::HpetEnabled, xen_sys::HVM_PARAM_HPET_ENABLED),
        (HvmParam::VptAlign, xen_sys::HVM_PARAM_VPT_ALIGN),
        (HvmParam::AcpiSState, xen_sys::HVM_PARAM_ACPI_S_STATE),
        (HvmParam::ConsolePfn, xen_sys::HVM_PARAM_CONSOLE_PFN),
        (HvmParam::TripleFaultReason, xen_sys::HVM_PARAM_TRIPLE_FAULT_REASON),
        (HvmParam::NrIoreqServerPages, xen_sys::HVM_PARAM_NR_IOREQ_SERVER_PAGES),
        (HvmParam::VmGenerationIdAddr, xen_sys::HVM_PARAM_VM_GENERATION_ID_ADDR),
        (HvmParam::Altp2m, xen_sys::HVM_PARAM_ALTP2M),
        (HvmParam::McaCap, xen_sys::HVM_PARAM_MCA_CAP),
    ] {
        assert_eq!(param.number(), number, "{param:?}");
    }
    assert_eq!(crate::param::Viridian::CPU_HOTPLUG.bits(), u64::from(xen_sys::HVMPV_cpu_hotplug));
    assert_eq!(crate::event::Virq::DomExc as u32, xen_sys::VIRQ_DOM_EXC);
    assert_eq!(crate::event::Virq::ConRing as u32, xen_sys::VIRQ_CON_RING);
    for raw in 0..=xen_sys::SHUTDOWN_MAX {
        let raw = u8::try_from(raw).expect("a small number");
        let reason = ShutdownReason::from_raw(raw);
        assert!(!matches!(reason, ShutdownReason::Other(_)) && reason.raw() == raw);
    }
}
