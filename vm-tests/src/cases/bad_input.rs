//! What a person can get wrong: a clear error each, and nothing left behind.

use std::path::Path;
use std::process::{self, Command};

use anyhow::{Context, Result, ensure};

use super::Case;
use crate::harness::command::{Output, outrigger, run};
use crate::harness::config::GuestConfig;
use crate::harness::guest::{Made, must_run, scratch};
use crate::harness::seconds;

pub(super) const CASES: &[Case] = &[
    Case::new("bad_input::config_errors_point_at_the_line", config_errors),
    Case::new("bad_input::example_files_of_xen_parse", examples),
    Case::new("bad_input::missing_disk", missing_disk),
    Case::new("bad_input::missing_image", missing_image),
    Case::new("bad_input::too_little_memory", too_little_memory),
    Case::new("bad_input::full_disk", full_disk),
    Case::new("bad_input::no_such_guest", no_such_guest),
    Case::new("bad_input::absurd_qemu_argument", absurd_argument),
    Case::new("bad_input::name_taken", name_taken),
    Case::new("bad_input::second_daemon", second_daemon),
];

fn create(config: &Path) -> Result<Output> {
    outrigger(&["create", &config.to_string_lossy()])
}

fn config_errors() -> Result<()> {
    let config = scratch("wrong.cfg", b"name='wrong'\ntype='hvm'\nmemroy=64\nvcpus='x'\n")?;
    create(&config)?.refused(3, &["wrong.cfg:3", "memroy", "memory", "wrong.cfg:4"])?;
    outrigger(&["config", "check", &config.to_string_lossy()])?.refused(3, &["memroy"])?;
    Ok(())
}

fn examples() -> Result<()> {
    for good in ["/examples/hello.cfg", "/etc/xen/xlexample.hvm"] {
        outrigger(&["config", "check", good])?.good()?;
    }
    // Their language is read; what they ask for is not ours to run, and that is said.
    for other in ["/etc/xen/xlexample.pvlinux", "/etc/xen/xlexample.pvhlinux"] {
        outrigger(&["config", "check", other])?.refused(3, &["config::not-hvm"])?;
    }
    Ok(())
}

fn missing_disk() -> Result<()> {
    let config = GuestConfig::hello("nodisk").boot_disk("/nowhere/a.img".as_ref());
    config.refused(1, &["/nowhere/a.img", "hda"])
}

fn missing_image() -> Result<()> {
    let config = GuestConfig::hello("noimage").line("stubdomain_ramdisk='/nowhere/initramfs.img'");
    config.refused(1, &["/nowhere/initramfs.img"])
}

fn too_little_memory() -> Result<()> {
    GuestConfig::hello("big").memory(900_000).refused(1, &["memory"])
}

/// No room for the state file: nothing is made of which nothing could be known after a crash.
fn full_disk() -> Result<()> {
    const STATE: &str = "/var/lib/outrigger/guests";
    std::fs::create_dir_all(STATE)?;
    let config = GuestConfig::hello("squeezed").write()?;
    run("mount", &["-t", "tmpfs", "-o", "size=8k", "full", STATE])?.good()?;
    let outcome = std::fs::write(format!("{STATE}/filler"), [0; 8192])
        .context("cannot fill the file system")
        .and_then(|()| create(&config));
    run("umount", &[STATE])?.good()?;
    outcome?.refused(1, &[STATE, "No space left"])?;
    // With room again it goes.
    Made::create(&config, &[])?.destroy()
}

fn no_such_guest() -> Result<()> {
    for command in ["destroy", "pause", "domid", "console"] {
        outrigger(&[command, "nobody"])?.refused(4, &["nobody"])?;
    }
    Ok(())
}

fn absurd_argument() -> Result<()> {
    // QEMU's own complaint reaches the person through the stubdomain's log.
    let config = GuestConfig::hello("absurd").line("device_model_args=['-no-such-option-of-qemu']");
    config.refused(1, &["no-such-option-of-qemu"])
}

fn name_taken() -> Result<()> {
    let config = GuestConfig::hello("twin").write()?;
    let first = Made::create(&config, &[])?;
    create(&config)?.refused(1, &["twin", &first.guest.domid.to_string()])?;
    must_run("twin")?;
    first.destroy()
}

fn second_daemon() -> Result<()> {
    for daemon in ["outriggerd", "outrigger-consoled"] {
        let output = within_twenty_seconds(daemon)?;
        ensure!(!output.status.success(), "a second {daemon} started");
        ensure!(![Some(124), Some(143)].contains(&output.status.code()), "a second {daemon} stayed");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(text.contains("Another"), "a second {daemon} does not say why it ends: {text}");
    }
    outrigger(&["list"])?.good()?;
    Ok(())
}

/// Runs a daemon that is expected to end by itself: only one that stayed would need the limit.
fn within_twenty_seconds(daemon: &str) -> Result<process::Output> {
    let limit = seconds(20).as_secs().to_string();
    let output = Command::new("timeout").args([&limit, daemon]).output();
    output.with_context(|| format!("cannot start {daemon}"))
}
