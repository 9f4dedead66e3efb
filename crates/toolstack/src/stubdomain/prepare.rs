//! What a stubdomain is made of, found and checked before anything is changed.

use config::{GuestConfig, StubdomainKind};
use xen_types::KiB;

use super::image::{PvhSupport, StubImage};
use crate::Toolstack;
use crate::error::Cause;
use crate::operation::StepResult;

/// Memory that Xen needs for a PV domain beyond what is given to it, as libxl reckons (`LIBXL_PV_EXTRA_MEMORY`).
const PV_EXTRA: KiB = KiB(1024);
/// The same for a PVH domain (`LIBXL_HVM_EXTRA_MEMORY`).
const PVH_EXTRA: KiB = KiB(2048);
/// As PVH, Linux maps other domains' pages into address space that it takes in such steps.
const MAPPED_STEP: KiB = KiB::from_mib(128);
/// What it keeps for the pages of one step, whether they are mapped or not: 64 bytes each.
const MAPPED_STEP_COST: KiB = KiB::from_mib(2);

/// What a stubdomain is made of.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) image: StubImage,
    pub(crate) kind: StubdomainKind,
    /// Its memory: the image's, the guest's video memory, which its QEMU keeps a copy of, and what mappings cost.
    pub(crate) memory: KiB,
    /// What Xen gets to translate its addresses; a PV domain needs nothing.
    pub(crate) paging_memory: Option<KiB>,
    /// The number of its XSM label, 0 without one.
    pub(crate) label: u32,
}

impl Prepared {
    /// Finds the parts of the stubdomain of a guest with this configuration; refuses what Xen cannot give it.
    pub(crate) fn find(ts: &Toolstack, config: &GuestConfig) -> Result<Self, Cause> {
        let label = ts.security_label(config.labels.device_model.as_ref())?;
        let image = StubImage::find(config, &ts.paths, &*ts.host)?;
        let kind = config.device_model.kind;
        let mut memory = image.memory + config.display.video_memory;
        let mut paging_memory = None;
        if kind == StubdomainKind::Pvh {
            check_pvh(ts, &image)?;
            memory = memory + mapping_cost(config);
            paging_memory = Some(translation(memory, config));
        }
        Ok(Self { image, kind, memory, paging_memory, label })
    }

    /// All memory that the domain takes from the host.
    pub(crate) fn memory_needed(&self) -> KiB {
        let extra = match self.kind {
            StubdomainKind::Pv => PV_EXTRA,
            StubdomainKind::Pvh => PVH_EXTRA,
        };
        self.memory + self.paging_memory.unwrap_or(KiB(0)) + extra
    }
}

/// Refuses a PVH stubdomain where it could not map its guest's memory, or not start.
fn check_pvh(ts: &Toolstack, image: &StubImage) -> StepResult {
    let no = |why: String| Err(Cause::Unsupported { what: "stubdomain_type=\"pvh\"".to_owned(), why });
    let release = ts.hypervisor.release()?;
    if !release.hvm_may_map_foreign_pages() {
        return no(format!(
            "Xen {release} lets no PVH domain map another domain's memory, which QEMU needs; Xen 4.19 and later do. \
             Omit the key"
        ));
    }
    if !ts.hypervisor.host_info()?.capabilities.hap {
        return no("this host has no hardware-assisted paging; omit the key".to_owned());
    }
    match image.pvh {
        PvhSupport::Yes | PvhSupport::Unknown => Ok(()),
        PvhSupport::No => {
            no("the manifest of the stubdomain's image does not say that its kernel can start in a PVH \
                              domain; build the image again with `outrigger image build`, or omit the key"
                .to_owned())
        }
    }
}

/// What the stubdomain's kernel keeps to have all of the guest's memory mapped at once, with a step for grants.
fn mapping_cost(config: &GuestConfig) -> KiB {
    let steps = config.max_memory.get().div_ceil(MAPPED_STEP.get()).saturating_add(1);
    KiB(MAPPED_STEP_COST.get().saturating_mul(steps))
}

/// What Xen gets to translate addresses: as libxl reckons for a domain of one vCPU, 1 MiB and a page for each MiB, and a
/// table of 512 entries for each 2 MiB of the guest that are mapped.
fn translation(memory: KiB, config: &GuestConfig) -> KiB {
    let mapped = config.max_memory.mib().div_ceil(2);
    KiB(4 * (256 + memory.mib().saturating_add(mapped)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(memory: u64) -> GuestConfig {
        let text = format!("type=\"hvm\"\nname=\"x\"\nmemory={memory}");
        config::load_str("x", &text).config.expect("a guest")
    }

    #[test]
    fn mappings_cost_whole_steps_and_one_for_grants() {
        let cost = |memory| mapping_cost(&guest(memory)).mib();
        assert_eq!([cost(64), cost(128), cost(129), cost(8192)], [4, 4, 6, 130]);
    }

    #[test]
    fn translation_covers_the_stubdomain_and_what_it_maps() {
        assert_eq!(translation(KiB::from_mib(84), &guest(256)), KiB(4 * (256 + 84 + 128)));
    }
}
