//! QEMU's arguments, from the configuration.

use config::{GuestConfig, Uuid};
use contract::Argv;
use xen_types::DomId;

use super::image::StubImage;
use crate::error::Cause;

/// The arguments for the guest's QEMU in its stubdomain.
pub(super) fn arguments(
    config: &GuestConfig,
    domid: DomId,
    uuid: Uuid,
    image: &StubImage,
) -> Result<Argv, Cause> {
    let _ = (uuid, image.qemu.sandbox);
    let mut args: Vec<String> =
        ["-xen-domid", &domid.to_string(), "-no-shutdown", "-nodefaults", "-no-user-config"]
            .map(str::to_owned)
            .to_vec();
    args.extend(["-name", &config.name].map(str::to_owned));
    Ok(Argv::new(args)?)
}
