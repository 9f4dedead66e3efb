//! What to do when the host has too little free memory.

use xen_types::KiB;

/// The least that dom0 is advised to keep.
const DOM0_LEAST: KiB = KiB::from_mib(512);

/// What is missing, and where it can come from. Nothing takes memory from dom0 by itself, as xl's `autoballoon` does.
pub(crate) fn advice(need: KiB, free: KiB, dom0: Option<KiB>) -> String {
    // In MiB, as both commands take it; up, so that it suffices.
    let missing = KiB::from_mib(need.get().saturating_sub(free.get()).div_ceil(1024));
    let rest = KiB(dom0.unwrap_or_default().get().saturating_sub(missing.get()));
    let others = format!("{missing} more must be free: stop a guest, or lower memory=");
    match dom0 {
        Some(dom0) if rest >= DOM0_LEAST => {
            let rest = rest.mib();
            format!(
                "{others}, or have dom0, which has {} MiB, return some: `xl mem-set 0 {rest}` until the next boot, \
                 dom0_mem={rest}M on Xen's command line from then on",
                dom0.mib()
            )
        }
        _ => others,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_memory_is_counted_and_dom0_keeps_enough() {
        let mib = KiB::from_mib;
        assert_eq!(
            advice(mib(1100), KiB(76 * 1024 + 1), Some(mib(4000))),
            "1024 MiB more must be free: stop a guest, or lower memory=, or have dom0, which has 4000 MiB, return some: \
             `xl mem-set 0 2976` until the next boot, dom0_mem=2976M on Xen's command line from then on"
        );
        for dom0 in [None, Some(mib(600)), Some(mib(1535))] {
            let text = advice(mib(1100), mib(76), dom0);
            assert_eq!(text, "1024 MiB more must be free: stop a guest, or lower memory=", "{dom0:?}");
        }
        assert!(advice(mib(1100), mib(76), Some(mib(1536))).contains("mem-set 0 512`"));
    }
}
