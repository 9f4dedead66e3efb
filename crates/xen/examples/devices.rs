//! Shows in a Xen domain that event channels and grants work, within the domain itself.
//!
//! Usage: `devices [DOMID]`, with the number of the domain that it runs in; 0 when none is given.

use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use xen::{Access, EventChannels, GrantAllocator, GrantTable, OnUnmap};
use xen_types::{DomId, EventPort, GrantRef, PAGE_SIZE};

fn main() -> anyhow::Result<()> {
    let domid: DomId = std::env::args().nth(1).unwrap_or_else(|| "0".to_owned()).parse()?;
    let near = EventChannels::open()?;
    let far = EventChannels::open()?;
    let near_port = near.bind_unbound_port(domid)?;
    let far_port = far.bind_interdomain(domid, near_port)?;
    // Xen fires a port that has just been bound, because the other end may have fired before.
    wait_for(&far, far_port)?;
    far.notify(far_port)?;
    wait_for(&near, near_port)?;
    near.notify(near_port)?;
    wait_for(&far, far_port)?;
    ensure!(near.pending()?.is_none(), "a port fired by itself");
    println!("holds  an event channel fires in both directions");

    let allocator = GrantAllocator::open()?;
    let table = GrantTable::open()?;
    let granted = allocator.share(domid, 3, Access::ReadWrite, OnUnmap::default())?;
    let on_unmap = OnUnmap { clear_byte: Some(PAGE_SIZE + 7), notify: Some(far_port) };
    let mapped = table.map_with(domid, granted.refs(), Access::ReadWrite, on_unmap)?;
    mapped.pages().write(PAGE_SIZE - 2, b"across");
    mapped.pages().store_u8(PAGE_SIZE + 7, 1, Ordering::Release);
    let mut back = [0; 6];
    granted.pages().read(PAGE_SIZE - 2, &mut back);
    ensure!(&back == b"across", "the two mappings are not the same pages");
    println!("holds  granted pages are mapped in order");

    drop(mapped);
    wait_for(&near, near_port)?;
    ensure!(granted.pages().load_u8(PAGE_SIZE + 7, Ordering::Acquire) == 0, "the byte was not cleared");
    println!("holds  unmapping clears the byte and fires the port");

    let reading = table.map(domid, granted.refs(), Access::Read)?;
    reading.pages().read(PAGE_SIZE - 2, &mut back);
    ensure!(&back == b"across", "the pages changed");
    drop(reading);
    let refs = granted.refs().to_vec();
    drop(granted);
    let error = table
        .map(domid, &refs, Access::Read)
        .err()
        .context("pages were mapped after their grant had ended")?;
    println!("holds  an ended grant is refused: {error}");
    let error =
        table.map(domid, &[GrantRef(u32::MAX)], Access::Read).err().context("a grant without an entry")?;
    println!("holds  a grant that never was is refused: {error}");
    let error = near.bind_interdomain(domid, EventPort(1 << 20)).err().context("a port that never was")?;
    println!("holds  a port that never was is refused: {error}");
    for _ in 0..200 {
        let granted = allocator.share(domid, 1, Access::ReadWrite, OnUnmap::default())?;
        drop(table.map(domid, granted.refs(), Access::ReadWrite)?);
    }
    println!("holds  pages are given back as often as they are taken");
    Ok(())
}

fn wait_for(events: &EventChannels, port: EventPort) -> anyhow::Result<()> {
    let mut ready = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
    ensure!(poll(&mut ready, PollTimeout::from(5000_u16))? == 1, "port {port} did not fire");
    ensure!(events.pending()? == Some(port), "another port than {port} fired");
    events.unmask(port)?;
    Ok(())
}
