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
    let memory = config.memory.get().saturating_sub(config.display.video_memory.get()) / 1024;
    let mut args: Vec<String> = ["-xen-domid", &domid.to_string(), "-no-shutdown", "-nodefaults", "-no-user-config"]
        .map(str::to_owned)
        .to_vec();
    args.extend(["-name", &config.name, "-display", "none"].map(str::to_owned));
    for port in 0..config.serials.len() {
        args.extend(["-serial".to_owned(), format!("/dev/hvc{}", port + 3)]);
    }
    args.extend(["-device", "cirrus-vga,vgamem_mb=8", "-boot", "order=cda"].map(str::to_owned));
    args.extend(["-machine", "xenfv", "-m", &memory.to_string()].map(str::to_owned));
    for (index, disk) in config.disks.iter().enumerate() {
        let letter = char::from(b'a' + u8::try_from(index).unwrap_or(25));
        args.push("-drive".to_owned());
        args.push(format!(
            "file=/dev/xvd{letter},if=ide,index={},media=disk,format=raw,cache=writeback",
            disk.vdev.disk()
        ));
    }
    Ok(Argv::new(args)?)
}
