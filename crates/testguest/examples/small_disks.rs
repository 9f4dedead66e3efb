//! Makes the disks of the small guests, `uefi.img`, `power.img` and `disc.img`, in the folder that is given.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::path::PathBuf::from(std::env::args_os().nth(1).ok_or("usage: small_disks FOLDER")?);
    testguest::uefi_disk(&folder.join("uefi.img"))?;
    testguest::power_disk(&folder.join("power.img"))?;
    testguest::disc_disk(&folder.join("disc.img"))?;
    Ok(())
}
