//! Makes the Linux guest's disk at the path that is given.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let output = std::env::args_os().nth(1).ok_or("usage: linux_disk FILE")?;
    let store = image::packages::Store::from_environment()?;
    testguest::linux_disk(&store, output.as_ref(), &mut |step| eprintln!("{step:?}"))?;
    Ok(())
}
