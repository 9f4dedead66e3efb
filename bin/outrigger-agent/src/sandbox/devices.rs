//! QEMU's `/dev`: a folder of its own with the few devices that it needs, and the PV disks as they come and go.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, mknod, umask};
use nix::unistd::chown;

use super::{Confinement, DEV, FOLDER, ROOT};
use crate::error::AgentError;

/// What every program may use.
const HARMLESS: [&str; 4] = ["null", "zero", "random", "urandom"];
/// What QEMU is for. `gntalloc` is not among them: only the agent offers pages to others.
const XEN: [&str; 5] = ["xen/privcmd", "xen/hypercall", "xen/evtchn", "xen/gntdev", "xen/xenbus"];
/// What else QEMU's arguments may name.
const TUN: &str = "net/tun";
/// The mode of what only QEMU's user may use.
const QEMU_ONLY: u32 = 0o600;
/// The mode of what every program may use.
const EVERYONE: u32 = 0o666;
/// What a passed-through device with MSI-X needs.
const MEMORY: &str = "mem";

/// Makes the folder, and makes QEMU the owner of the folders that it may write to.
///
/// `more` are the names of the serial consoles and disks that exist.
pub(crate) fn prepare(more: &[String], confinement: Confinement) -> Result<(), AgentError> {
    for folder in [DEV, ROOT] {
        fs::create_dir_all(folder).map_err(|e| AgentError::MakeDir(folder.into(), e))?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), DEV, Some("tmpfs"), flags, Some("size=64k,mode=0755"))
        .map_err(|source| AgentError::Mount { what: "tmpfs", on: DEV, source })?;
    for folder in ["xen", "net"] {
        let path = Path::new(DEV).join(folder);
        fs::create_dir(&path).map_err(|e| AgentError::MakeDir(path, e))?;
    }
    unmasked(|| {
        HARMLESS.into_iter().try_for_each(|name| make(name, None))?;
        let others = (confinement == Confinement::Pci).then_some(MEMORY).into_iter().chain([TUN]);
        let more = more.iter().map(String::as_str);
        XEN.into_iter().chain(others).chain(more).try_for_each(|name| make(name, Some(confinement)))
    })?;
    let (user, group) = confinement.ids();
    for folder in ["/run", "/tmp"] {
        chown(folder, Some(user), Some(group)).map_err(AgentError::system("give QEMU a directory"))?;
    }
    // Only the agent accesses this from outside.
    let _ = fs::set_permissions(FOLDER, std::os::unix::fs::PermissionsExt::from_mode(0o700));
    Ok(())
}

/// Makes the device of this name in QEMU's `/dev`; one that is absent is skipped, because a kernel may lack it.
pub(crate) fn grant(name: &str, confinement: Confinement) -> Result<(), AgentError> {
    unmasked(|| make(name, Some(confinement)))
}

/// Runs `make` with nothing taken from the modes of what it makes: cheaper than setting each mode afterwards.
fn unmasked<T>(make: impl FnOnce() -> T) -> T {
    let mask = umask(Mode::empty());
    let made = make();
    umask(mask);
    made
}

/// Makes the device for QEMU alone, or for everyone.
fn make(name: &str, only: Option<Confinement>) -> Result<(), AgentError> {
    let mode = if only.is_some() { QEMU_ONLY } else { EVERYONE };
    let Ok(device) = fs::metadata(Path::new("/dev").join(name)) else { return Ok(()) };
    let path = Path::new(DEV).join(name);
    let kind = SFlag::from_bits_truncate(device.mode()) & SFlag::S_IFMT;
    match mknod(&path, kind, Mode::from_bits_truncate(mode), device.rdev()) {
        Ok(()) => {}
        // It came and went and came again: QEMU's already.
        Err(Errno::EEXIST) => return Ok(()),
        Err(errno) => return Err(AgentError::system("make a device for QEMU")(errno)),
    }
    // Whose a device of everyone's is does not matter.
    let Some((user, group)) = only.map(Confinement::ids) else { return Ok(()) };
    chown(&path, Some(user), Some(group)).map_err(AgentError::system("give QEMU a device"))
}

/// Removes the device of this name from QEMU's `/dev`.
pub(crate) fn revoke(name: &str) {
    let _ = fs::remove_file(Path::new(DEV).join(name));
}
