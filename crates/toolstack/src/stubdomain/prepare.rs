//! What a stubdomain is made of, found and checked before anything is changed.

use config::GuestConfig;
use xen_types::KiB;

use super::image::StubImage;
use crate::Toolstack;
use crate::error::Cause;

/// Memory that Xen needs for a PV domain beyond what is given to it, as libxl reckons (`LIBXL_PV_EXTRA_MEMORY`).
const PV_EXTRA: KiB = KiB(1024);

/// What a stubdomain is made of.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) image: StubImage,
    /// Its memory: the image's and the guest's video memory, which its QEMU keeps a copy of.
    pub(crate) memory: KiB,
    /// The number of its XSM label, 0 without one.
    pub(crate) label: u32,
}

impl Prepared {
    /// Finds the parts of the stubdomain of a guest with this configuration.
    pub(crate) fn find(ts: &Toolstack, config: &GuestConfig) -> Result<Self, Cause> {
        let label = ts.security_label(config.labels.device_model.as_ref())?;
        let image = StubImage::find(config, &ts.paths, &*ts.host)?;
        let memory = image.memory + config.display.video_memory;
        Ok(Self { image, memory, label })
    }

    /// All memory that the domain takes from the host.
    pub(crate) fn memory_needed(&self) -> KiB {
        self.memory + PV_EXTRA
    }
}
